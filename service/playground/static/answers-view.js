// The answers about one input: bars, how sure they are, the decision and why, and the right answer.
import { isTeachable, teach } from "./actions.js";
import { gatesOf } from "./calibration.js";
import { withAnswer } from "./cases-view.js";
import { decide } from "./gate.js";
import { html, useState } from "./htm-preact.js";
import { AnswerSelect, percent } from "./parts.js";
import { setRow } from "./store.js";

const MOST_BARS = 8;

export function Answers({ row, state }) {
  const gates = gatesOf(state);
  return html`<div class="answers" role="region" aria-label="Answers about the selected input">
    <blockquote>${row.input}</blockquote>
    ${row.taught && html`<p class="stale">This input is a case now. It no longer counts in the curve: what was learned from proves nothing.</p>`}
    ${row.problem && html`<p class="problems" role="alert">${row.problem}</p>`}
    ${state.questions.map((question) => html`<${Answer} key=${question.id} question=${question} row=${row} gate=${gates[question.id]} />`)}
    ${!row.taught && html`<div class="bar">
      <button type="button" class=${isTeachable(row) ? "main" : ""} disabled=${!isTeachable(row) || !!state.busy} onClick=${() => teach(row.id)}>Make it a case</button>
      <span class="hint">Labels draw the curve and calibrate the gate. Cases teach the next version.</span>
    </div>`}
  </div>`;
}

function Answer({ question, row, gate }) {
  const decided = row.decided?.[question.id];
  const known = row.answers[question.id];
  const decision = decided && decide(decided, gate);
  return html`<div class="answer">
    <div class="line wrap">
      <h3>${question.name}</h3>
      ${decision && html`<span class=${`chip ${decision.given ? "given" : "abstains"}`}>${decision.given ? "answer" : "abstain"}</span>`}
      <span class="gap"></span>
      <label class="label">Right answer <${AnswerSelect} question=${question} answer=${known} label=${`Right answer to ${question.name}`} none="not known" disabled=${row.taught}
        onChange=${(answer) => setRow("inputs", row.id, ({ answers }) => ({ answers: withAnswer(answers, question.id, answer) }))} /></label>
    </div>
    <p class="hint">${question.instructions}${decision?.reason && html` <span class="why">Abstains: ${decision.reason}.</span>`}</p>
    ${decided ? html`<${Bars} decided=${decided} known=${known} /><${Facts} decided=${decided} />` : html`<p class="unset">No answer yet.</p>`}
  </div>`;
}

export function Bars({ decided, known }) {
  const [all, setAll] = useState(false);
  const { options, probabilities, top, details } = decided;
  const order = options.map((_, i) => i);
  const shown = all || options.length <= MOST_BARS ? order : [...order].sort((a, b) => probabilities[b] - probabilities[a]).slice(0, MOST_BARS);
  const spread = 2 * details.standard_error;
  return html`<ul class="bars">
    ${shown.map((i) => html`<li key=${i} class=${i === top ? "top" : ""}>
      <span class="option" title=${options[i]}>${options[i]}${known === options[i] && html`<b class="right" title="the right answer"> ✓</b>`}</span>
      <span class="track" aria-hidden="true"><i style=${{ width: `${100 * probabilities[i]}%` }}></i>
        ${i === top && spread > 0 && html`<em style=${whisker(probabilities[i], spread)}></em>`}</span>
      <span class="value">${percent(probabilities[i])}${i === top && spread > 0 && html` <small>± ${(100 * spread).toFixed(spread < 0.1 ? 1 : 0)}</small>`}</span>
    </li>`)}
    ${shown.length < options.length && html`<li><button type="button" class="link" onClick=${() => setAll(true)}>Show all ${options.length}</button></li>`}
  </ul>`;
}

function whisker(at, spread) {
  const low = Math.max(0, at - spread);
  return { left: `${100 * low}%`, width: `${100 * (Math.min(1, at + spread) - low)}%` };
}

/** Say in words how sure the answer is; the limits are those of attention, not of a guarantee. */
function Facts({ decided }) {
  const { details, score } = decided;
  const facts = [];
  if (score !== undefined) facts.push(["mean level", `${score.toFixed(2)}, counted from 0`]);
  if (details.answerable !== null) facts.push(["the input tells it", `${percent(details.answerable)}${details.answerable < 0.5 ? ": it may not" : ""}`, details.answerable < 0.5]);
  if (details.typicality !== null) facts.push(["like the cases", `p = ${details.typicality.toPrecision(2)}${details.typicality < 0.05 ? ": unlike them" : ""}`, details.typicality < 0.05]);
  facts.push(["samples disagree by", `${details.mutual_information.toFixed(3)} nats, ${details.samples} samples`]);
  if (!details.learned) facts.push(["learned", "no case answers this question", true]);
  return html`<dl class="facts">${facts.map(([name, value, warn]) => html`<div key=${name} class=${warn ? "warn" : ""}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}
