// What a certificate would accept: the walk of abmll/assurance/certificates.py, at its first look.
//
// `outcomes` are `{confidence, correct}`. The server certifies; this shows what it would find.

const ALLOWED_ERRORS = [0, 1, 2, 3, 5, 8, 12, 18, 26, 38, 55, 80, 116, 168, 243, 352, 510, 740];
const FIRST_ALLOWED = 5;
const LOOK_GROWTH = 1.5;
const MOST_LABELS = 1_000_000;
export const DELTA = 0.1;
export const TARGETS = [0.02, 0.05, 0.1, 0.2];

/**
 * Return the rows whose labels for a question count: an input counts once, and not if it is a case.
 */
export function labelledRows(question, inputs, cases = []) {
  const seen = new Set(cases.map(({ input }) => input));
  return inputs.filter(({ input, answers, taught }) => {
    if (taught || answers[question.id] === undefined || seen.has(input)) return false;
    return seen.add(input);
  });
}

/**
 * Return the outcomes of labelled inputs of a question, as `POST .../calibrate` counts them: an
 * answer to what an input does not tell is wrong.
 */
export const outcomesOf = (question, inputs, cases) =>
  labelledRows(question, inputs, cases).flatMap(({ answers, decided }) => {
    const found = decided?.[question.id];
    return found ? [{ confidence: found.confidence, correct: found.options[found.top] === answers[question.id] }] : [];
  });

/**
 * Return `{threshold, n, accepted, errors, coverage}` of the certificate that answers above
 * `threshold` are wrong with probability at most `target`; or `{more}`, about how many labels it
 * needs beyond these, null where more labels of this kind do not help.
 */
export function certificate(outcomes, target, delta = DELTA) {
  const n = outcomes.length;
  const level = delta / 2; // of the first look
  const fewest = fewestAccepted(target, level, 0);
  if (n < fewest) return { more: nextLook(n, n, fewest) - n };
  const ordered = [...outcomes].sort((a, b) => b.confidence - a.confidence);
  const wrong = [0];
  for (const { correct } of ordered) wrong.push(wrong.at(-1) + (correct ? 0 : 1));
  let found = null;
  for (const threshold of cuts(ordered, target, level)) {
    const accepted = ordered.filter(({ confidence }) => confidence >= threshold).length;
    if (accepted < fewest) continue; // confidences are tied
    const errors = wrong[accepted];
    if (binomial(errors, accepted, target) > level) {
      if (found) break;
      const about = aboutMore(n, accepted, errors, target, level);
      return { more: about === null ? null : nextLook(n, n, Math.max(fewest, n + about)) - n };
    }
    found = { threshold, n, accepted, errors, coverage: accepted / n };
  }
  return found;
}

/** Return thresholds from strict to loose, each just above the surest confidence that it leaves out. */
function cuts(ordered, target, level) {
  let ranks = [];
  for (const errors of ALLOWED_ERRORS) {
    const rank = fewestAccepted(target, level, errors);
    if (rank >= ordered.length) break;
    if (errors <= FIRST_ALLOWED && rank <= ordered.length / 10) ranks = [];
    ranks.push(rank);
  }
  return [...new Set([...ranks.map((rank) => justAbove(ordered[rank].confidence)), 0])];
}

/** Return the fewest accepted items, `errors` of them wrong, that pass. */
function fewestAccepted(target, level, errors) {
  return least((n) => binomial(errors, n, target) <= level, errors + 1);
}

function aboutMore(n, accepted, errors, target, level) {
  const error = (errors + 0.5) / (accepted + 1);
  if (!accepted || error >= target) return null;
  const size = least((k) => (k * n) / accepted > MOST_LABELS || binomial(Math.floor(error * k), k, target) <= level, 2 * accepted + 1, accepted);
  return (size * n) / accepted > MOST_LABELS ? null : Math.max(1, Math.ceil((size * n) / accepted) - n);
}

function nextLook(first, n, wanted) {
  let size = Math.max(1, first);
  while (size <= n || size < wanted) size = Math.ceil(LOOK_GROWTH * size);
  return size;
}

/** Return a number above `low` that passes where the one before it does not, by halving. */
function least(passes, high, low = high - 1) {
  while (!passes(high)) [low, high] = [high, 2 * high];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (passes(middle)) high = middle;
    else low = middle;
  }
  return high;
}

/** Return P(Bin(n, p) <= k). */
function binomial(k, n, p) {
  if (k >= n) return 1;
  let sum = 0;
  let log = n * Math.log1p(-p); // of P(Bin(n, p) = 0)
  for (let i = 0; i <= k; i += 1) {
    sum += Math.exp(log);
    log += Math.log((n - i) / (i + 1)) + Math.log(p / (1 - p));
  }
  return Math.min(1, sum);
}

/** Return the next number above a positive one. */
function justAbove(value) {
  const bits = new DataView(new ArrayBuffer(8));
  bits.setFloat64(0, value);
  bits.setBigInt64(0, bits.getBigInt64(0) + 1n);
  return bits.getFloat64(0);
}
