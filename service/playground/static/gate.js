// Which answers a gate gives, and how often they are wrong: pure functions of answered rows.

/**
 * Return `{given, reason}` of one decided answer at a gate `{least, target}`, as the server decides.
 * `target` is the share of wrong answers that is certified, where a certificate gives `least`.
 */
export function decide({ confidence }, { least, target }) {
  if (confidence >= least) return { given: true, reason: "" };
  const digits = [2, 3, 4, 5].find((n) => confidence.toFixed(n) !== least.toFixed(n)) ?? 6;
  const certified = target === undefined ? "" : `, from which on at most ${Math.round(100 * target)} % are certified to be wrong`;
  return { given: false, reason: `confidence ${confidence.toFixed(digits)} is below ${least.toFixed(digits)}${certified}` };
}

/**
 * Return `{confidence, right}` of the answers; `right` is undefined where no right answer is known.
 * Those of a question that `gates` has a certificate of have its `least` confidence.
 */
export function outcomes(questions, inputs, only = "", gates = {}) {
  const found = [];
  for (const row of inputs) {
    if (!row.decided || row.taught) continue;
    for (const question of questions) {
      const decided = row.decided[question.id];
      if (!decided || (only && only !== question.id)) continue;
      const known = row.answers[question.id];
      // What an input does not tell has no right option: it says nothing of the answer.
      const right = known == null ? undefined : decided.options[decided.top] === known;
      found.push({ confidence: decided.confidence, right, ...(gates[question.id]?.target !== undefined && { least: gates[question.id].least }) });
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

/** Return the numbers at a least confidence, or at those of the answers: `{total, given, labelled, right, givenLabelled, wrong}`. */
export function summary(found, least) {
  const given = found.filter((one) => one.confidence >= (one.least ?? least));
  const labelled = found.filter((one) => one.right !== undefined);
  const givenLabelled = given.filter((one) => one.right !== undefined);
  return {
    total: found.length, given: given.length, labelled: labelled.length, right: labelled.filter((one) => one.right).length,
    givenLabelled: givenLabelled.length, wrong: givenLabelled.filter((one) => !one.right).length,
  };
}
