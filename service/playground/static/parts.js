// Small parts that several views share.
import { html, useEffect, useState } from "./htm-preact.js";
import { isKnown, optionsOf } from "./questions.js";
import { seconds } from "./session.js";

/** What is wrong with a part of the page, in words. */
export function Problems({ problems, onGo }) {
  if (!problems.length) return null;
  const shown = problems.slice(0, 5);
  return html`<div role="alert"><ul class="problems">
    ${shown.map((problem) => html`<li>${problem.message}
      ${onGo && problem.id && html` <button type="button" class="link" onClick=${() => onGo(problem)}>Show it</button>`}</li>`)}
    ${problems.length > 5 && html`<li>and ${problems.length - 5} more.</li>`}
  </ul></div>`;
}

/** A select of the answers to a question: none, an option, or that the input does not tell. */
export function AnswerSelect({ question, answer, label, onChange, none = "–", disabled }) {
  const options = optionsOf(question).filter((option) => option.trim());
  const known = isKnown(question, answer);
  const value = answer === undefined ? "" : answer === null ? "?" : `=${answer}`;
  const changed = (event) => {
    const text = event.currentTarget.value;
    onChange(text === "" ? undefined : text === "?" ? null : text.slice(1));
  };
  return html`<select aria-label=${label} aria-invalid=${known ? undefined : "true"} value=${value} onChange=${changed} disabled=${disabled}
      class=${answer === undefined ? "unset" : ""}>
    <option value="">${none}</option>
    ${!known && html`<option value=${value}>${answer} (no option)</option>`}
    ${options.map((option) => html`<option value=${`=${option}`}>${option}</option>`)}
    <option value="?">cannot tell</option>
  </select>`;
}

/** How far a piece of work is. */
export function Progress({ busy, what }) {
  const [, tick] = useState(0);
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 500);
    return () => clearInterval(timer);
  }, []);
  const past = (Date.now() - busy.since) / 1000;
  const { done, total, estimate, unit = "", waits } = busy;
  const left = done ? (past / done) * (total - done) : null;
  const counted = total ? `${unit}${done.toLocaleString("en")} of ${total.toLocaleString("en")}` : "";
  const words = left !== null ? `${counted}, about ${seconds(left)} left`
    : waits ? `waits for other work, ${seconds(past)}`
    : [counted, `${seconds(past)}${estimate ? ` of about ${seconds(estimate)}, by the server's own measure` : ""}`].filter(Boolean).join(", ");
  const share = done ? done / total : estimate && !waits ? Math.min(0.97, past / estimate) : undefined;
  return html`<div class="progress">
    <progress aria-label=${what} max="1" value=${share}></progress>
    <span>${words}</span>
    <button type="button" onClick=${busy.stop}>Stop</button>
  </div>`;
}

export const percent = (value) => `${Math.round(100 * value)} %`;
