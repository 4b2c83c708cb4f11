// The calibration of the version that answers: which certificates hold, and what the gate of each
// question is. Pure functions of the state.
//
// `state.calibration` is `{adapterId, label, used, questions}`: of each question, by its id, what the
// server has, `{content, samples, n, state, revoked, certificates}`.
import { certificate, DELTA, labelledRows, outcomesOf } from "./certificate.js";
import { digest } from "./digest.js";
import { percent } from "./parts.js";
import { isKnown, wireQuestion } from "./questions.js";
import { count, label } from "./session.js";

const contentOf = (question) => digest(wireQuestion(question));

/** Read the server's calibrations of an adapter. */
export function readCalibrations(found, state) {
  const calibrations = found.questions ?? [found];
  const entries = state.questions.flatMap((question) => {
    const own = calibrations.find(({ question: of }) => of?.name === question.name);
    if (!own) return [];
    const { samples, n, state: standing, revoked_reason: revoked, certificates } = own;
    return [[question.id, { content: contentOf(question), samples, n, state: standing, revoked: revoked ?? "", certificates }]];
  });
  return { adapterId: state.version.adapterId, label: label(state.version), used: true, questions: Object.fromEntries(entries) };
}

/** Return what the server has of a question, where it is of what is asked now; else null. */
function heldOf({ calibration, version, samples }, question) {
  const own = calibration?.adapterId === version?.adapterId ? calibration?.questions[question.id] : null;
  return own && own.content === contentOf(question) && own.samples === samples ? own : null;
}

const certified = (held, target) => held?.certificates.find((one) => one.target_error === target && one.certified);

/** Return `{least, target}` of each question by its id; `target` where a certificate gives `least`. */
export function gatesOf(state) {
  return Object.fromEntries(state.questions.map((question) => {
    const found = state.calibration?.used && certified(heldOf(state, question), state.target);
    return [question.id, found ? { least: found.threshold, target: state.target } : { least: state.gate }];
  }));
}

/** Return `{questions, gate}` of the requests that ask all questions: the server takes one kind of gate in each. */
export function partsOf(state) {
  const gates = gatesOf(state);
  const isCertified = ({ id }) => gates[id].target !== undefined;
  return [
    { questions: state.questions.filter(isCertified), gate: { target_error: state.target, delta: DELTA } },
    { questions: state.questions.filter((question) => !isCertified(question)), gate: { min_confidence: state.gate } },
  ].filter(({ questions }) => questions.length);
}

/** Say why certificates that are there do not hold for what is asked now; empty where they do. */
export function staleness({ calibration, version, samples, questions }) {
  if (!calibration || !version) return "";
  if (calibration.adapterId !== version.adapterId)
    return `The calibrated gate is that of ${calibration.label}. It says nothing about ${label(version)}, which has to be calibrated by itself.`;
  const other = questions.map(({ id }) => calibration.questions[id]).find((own) => own && own.samples !== samples);
  if (other) return `The gate was calibrated with ${count(other.samples, "sample")}, and answers have ${samples} now: it does not hold for them. Set the samples back, or begin anew.`;
  const changed = questions.find((question) => calibration.questions[question.id] && calibration.questions[question.id].content !== contentOf(question));
  return changed ? `“${changed.name}” is another question than the one that was calibrated: its certificate does not hold.` : "";
}

const countedOf = (row, adapterId) => (row.counted?.adapterId === adapterId ? row.counted.answers : {});

/** Return `{question, rows}`: the labelled inputs that the calibration has not counted, or all of them. */
export function newLabels({ questions, inputs, cases, version }, all = false) {
  return questions.map((question) => ({
    question,
    rows: labelledRows(question, inputs, cases).filter((row) => isKnown(question, row.answers[question.id]) && (all || !(question.id in countedOf(row, version?.adapterId)))),
  }));
}

/** Return a row that says which of its labels counted. */
export const counted = (row, adapterId, id) => ({ ...row, counted: { adapterId, answers: { ...countedOf(row, adapterId), [id]: row.answers[id] } } });

/** Return how many labels have changed since they counted. */
export const changedLabels = ({ inputs, version }) =>
  inputs.reduce((sum, row) => sum + Object.entries(countedOf(row, version?.adapterId)).filter(([id, answer]) => row.answers[id] !== answer).length, 0);

/** Return `{id, name, promised, threshold, text}` of each question: what is certified, or what would be. */
export function certificatesOf(state) {
  const { questions, inputs, cases, target, version } = state;
  return questions.map((question) => {
    const { id, name } = question;
    const held = heldOf(state, question);
    const found = certified(held, target);
    if (found) return { id, name, promised: true, threshold: found.threshold, text: promise(found, version) };
    if (held) return { id, name, promised: false, text: unmet(held, target) };
    const outcomes = outcomesOf(question, inputs, cases);
    const would = certificate(outcomes, target);
    return { id, name, promised: false, threshold: would.threshold, text: would.threshold === undefined ? missing(would.more, outcomes.length) : accepting(would) };
  });
}

function promise({ threshold, target_error: target, delta, n, accepted, errors, coverage }, version) {
  const wrong = `${errors} of them wrong`;
  const given = threshold > 0 ? `It gives those from confidence ${threshold.toFixed(2)} on, ${accepted} of the ${n} (${percent(coverage)}), ${wrong}; the others abstain.` : `It gives all, ${wrong}.`;
  return `at most ${percent(target)} of the answers that ${label(version)} gives are wrong. That holds with probability ${percent(1 - delta)}, for inputs that come as the ${count(n, "labelled one")} came. ${given}`;
}

function unmet({ n, state, revoked, certificates }, target) {
  if (state === "revoked") return `the certificate is revoked: ${revoked}. Begin anew with new labels.`;
  if (state === "incomplete") return "not all labels have arrived at the server. Calibrate with the others, or begin anew.";
  return missing(certificates.find((one) => one.target_error === target)?.about_n_more_labels ?? null, n);
}

const accepting = ({ threshold, n, accepted, errors, coverage }) =>
  `a certificate would accept answers from confidence ${threshold.toFixed(2)} on: ${accepted} of ${n} labelled ones (${percent(coverage)}), of which ${errors} ${errors === 1 ? "is" : "are"} wrong.`;

const missing = (more, n) =>
  more === null ? `none. Of ${count(n, "label")}, the surest answers are wrong too often: more labels like these do not help.`
    : `none yet. There ${n === 1 ? "is" : "are"} ${count(n, "label")}; about ${more} more are needed.`;
