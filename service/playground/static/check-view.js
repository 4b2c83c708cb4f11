// The health of the version: a verdict on each question, and cases to look at.
import { check } from "./check.js";
import { html } from "./htm-preact.js";
import { isLearned } from "./learn.js";
import { Problems, Progress } from "./parts.js";
import { label } from "./session.js";
import { set } from "./store.js";

export function Check({ state }) {
  const { busy, version, checked, problems } = state;
  if (!version) return null;
  const own = checked?.adapterId === version.adapterId ? checked : null;
  return html`<section aria-labelledby="check-title">
    <h2 id="check-title">Health</h2>
    <p class="hint">Leaves out a quarter of the cases, learns from the others, and answers those left out; then the next quarter. Takes longer than to learn.</p>
    <div class="bar"><button type="button" disabled=${!!busy || !isLearned(state)} onClick=${check}>Check ${label(version)}</button></div>
    ${busy?.kind === "check" && html`<${Progress} busy=${busy} what="Checking" />`}
    <${Problems} problems=${problems.filter((p) => p.part === "check")} />
    ${own && html`<ul class="verdicts" aria-label="Verdicts">${own.questions.map((question) => html`<li key=${question.name}>
      <h3>${question.name} <span class=${`chip ${question.verdict}`}>${question.verdict}</span></h3>
      <p>${question.text} ${question.right}</p>
      ${question.verdict !== "healthy" && html`<p class="hint">Why: ${question.reasons.join("; ")}.</p>`}
    </li>`)}</ul>`}
    ${own && (own.findings.length ? html`<ul class="findings" aria-label="Cases to look at">${own.findings.map(({ id, message }) => html`<li>${message}
      ${id && html` <button type="button" class="link" onClick=${() => set({ shown: { id } })}>Show it</button>`}</li>`)}</ul>`
      : html`<p class="hint">No label looks wrong.</p>`)}
  </section>`;
}
