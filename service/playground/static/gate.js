// Which answers a gate gives, and how often they are wrong: pure functions of answered rows.

/** Return `{answers, reason}` of one decided answer at a least confidence, as the server decides. */
export const decide = (decided, least) =>
  decided.confidence >= least ? { given: true, reason: "" }
    : { given: false, reason: `confidence ${decided.confidence.toFixed(2)} is below ${least.toFixed(2)}` };

/** Return `{confidence, right}` of the answers; `right` is undefined where no right answer is known. */
export function outcomes(questions, inputs, only = "") {
  const found = [];
  for (const row of inputs) {
    if (!row.decided || row.taught) continue;
    for (const question of questions) {
      const decided = row.decided[question.id];
      if (!decided || (only && only !== question.id)) continue;
      const known = row.answers[question.id];
      // What an input does not tell has no right option: it says nothing of the answer.
      const right = known == null ? undefined : decided.options[decided.top] === known;
      found.push({ confidence: decided.confidence, right });
    }
  }
  return found;
}

/** Return points `{confidence, coverage, error}` of the labelled answers, the surest first. */
export function curve(found) {
  const labelled = found.filter((one) => one.right !== undefined).sort((a, b) => b.confidence - a.confidence);
  const points = [];
  let errors = 0;
  labelled.forEach((one, index) => {
    errors += one.right ? 0 : 1;
    // Answers of one confidence pass a gate together.
    if (one.confidence !== labelled[index + 1]?.confidence)
      points.push({ confidence: one.confidence, coverage: (index + 1) / labelled.length, error: errors / (index + 1) });
  });
  return points;
}

/** Return the numbers at a least confidence: `{total, given, labelled, right, givenLabelled, wrong}`. */
export function summary(found, least) {
  const given = found.filter((one) => one.confidence >= least);
  const labelled = found.filter((one) => one.right !== undefined);
  const givenLabelled = given.filter((one) => one.right !== undefined);
  return {
    total: found.length, given: given.length, labelled: labelled.length, right: labelled.filter((one) => one.right).length,
    givenLabelled: givenLabelled.length, wrong: givenLabelled.filter((one) => !one.right).length,
  };
}
