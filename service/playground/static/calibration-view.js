// The calibrated gate: what it promises of each question, how it is made, and whether it decides.
import { calibrate } from "./calibrate.js";
import { changedLabels, gatesOf, newLabels, staleness } from "./calibration.js";
import { DELTA, TARGETS } from "./certificate.js";
import { html, useState } from "./htm-preact.js";
import { Problems, Progress, percent } from "./parts.js";
import { count, label } from "./session.js";
import { get, set } from "./store.js";

export function Calibration({ state, certificates, openImport }) {
  const [anew, setAnew] = useState(false);
  const { version, busy, problems, calibration, target, questions } = state;
  if (!version) return html`<p class="hint">A version that learned from cases can be calibrated: then the gate promises something.</p>`;
  const ready = newLabels(state, anew).reduce((sum, { rows }) => sum + rows.length, 0);
  const changed = changedLabels(state);
  const stale = staleness(state);
  const promised = certificates.some((one) => one.promised);
  const press = async () => {
    await calibrate(anew);
    if (!get().problems.length) setAnew(false);
  };
  return html`<h3>Calibrated gate</h3>
    <div class="line wrap"><label>Of the given answers, at most <select aria-label="Target error of a certificate" value=${target} onChange=${(e) => set({ target: Number(e.currentTarget.value) })}>
      ${TARGETS.map((share) => html`<option value=${share}>${percent(share)}</option>`)}</select> may be wrong</label></div>
    <ul class="certificates" aria-label="Certificates">${certificates.map(({ name, threshold, text, promised: own }) => html`<li key=${name}>
      ${own && html`<span class="chip given">certified</span> `}<b>${name}</b>: ${text}
      ${!own && threshold !== undefined && html` <button type="button" class="link" onClick=${() => set({ gate: threshold })}>Set the gate there</button>`}</li>`)}</ul>
    ${stale && html`<p class="stale" role="status">${stale}</p>`}
    ${promised && html`<label><input type="checkbox" checked=${calibration.used} onChange=${(e) => set({ calibration: { ...calibration, used: e.currentTarget.checked } })} /> Answer by the certificates</label>
      <p class="hint" role="status">${whoDecides(questions, gatesOf(state))}</p>`}
    <p class="hint">“Calibrate” has the server answer the inputs with a right answer, and certify a least confidence, with probability ${percent(1 - DELTA)}${questions.length > 1 ? " for each question by itself" : ""}. That is a promise about later inputs that come as the labelled ones came: label all inputs of a day, say, and not the unsure ones only.</p>
    <div class="bar">
      <button type="button" onClick=${() => openImport("inputs", { labelled: true })}>Paste labelled inputs</button>
      <label><input type="checkbox" checked=${anew} onChange=${(e) => setAnew(e.currentTarget.checked)} /> Begin anew</label>
      <span class="gap"></span>
      <button type="button" class=${ready && !promised ? "main" : ""} disabled=${!!busy} onClick=${press}>Calibrate ${label(version)} with ${count(ready, "label")}</button>
    </div>
    ${anew && html`<p class="hint">The labels that counted so far are forgotten. To begin anew until a promise comes out makes it worthless: do it where labels were wrong, or inputs have changed.</p>`}
    ${changed > 0 && !anew && html`<p class="stale" role="status">${count(changed, "label")} changed after ${changed === 1 ? "it" : "they"} counted: the first ${changed === 1 ? "one stays" : "ones stay"}, unless you begin anew.</p>`}
    ${busy?.kind === "calibrate" && html`<${Progress} busy=${busy} what="Calibrating" />`}
    <${Problems} problems=${problems.filter((p) => p.part === "calibrate")} onGo=${(p) => set({ selected: p.id })} />`;
}

function whoDecides(questions, gates) {
  const names = (certified) => questions.filter(({ id }) => (gates[id].target !== undefined) === certified).map(({ name }) => name).join(", ");
  const [by, left] = [names(true), names(false)];
  if (!by) return "The slider decides about all answers, which promises nothing.";
  return left ? `Certificates decide about ${by}. The slider decides about ${left}, which promises nothing.` : "Certificates decide about all answers; the slider waits.";
}
