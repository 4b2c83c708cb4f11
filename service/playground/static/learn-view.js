// Adapt to the cases: the button, how far it is, and the versions so far.
import { html } from "./htm-preact.js";
import { chosenCases, isLearned, learn } from "./learn.js";
import { Problems, Progress } from "./parts.js";
import { count, label, seconds } from "./session.js";
import { set } from "./store.js";

const EFFORTS = { full: "full: all steps", fast: "fast: two steps", instant: "instant: none" };

export function Learn({ state }) {
  const { busy, version, history, name, effort, problems } = state;
  const ready = chosenCases(state).length;
  const learned = isLearned(state);
  return html`<section aria-labelledby="learn-title">
    <h2 id="learn-title"><span class="step" aria-hidden="true">3</span> Learn</h2>
    <p class="hint">The model adapts to the cases. Under a name, each time makes the next version.</p>
    <div class="line wrap">
      <label>Name <input class="name" value=${name} placeholder="none" spellcheck="false" aria-describedby="name-problems" onInput=${(e) => set({ name: e.currentTarget.value })} /></label>
      <label>Effort <select value=${effort} onChange=${(e) => set({ effort: e.currentTarget.value })}>
        ${Object.entries(EFFORTS).map(([value, text]) => html`<option value=${value}>${text}</option>`)}
      </select></label>
      <label>First <input class="short" aria-label="Learn from the first cases" type="number" min="0" placeholder="all" value=${state.most || ""} onInput=${(e) => set({ most: Math.max(0, Math.round(Number(e.currentTarget.value) || 0)) })} /> cases</label>
      <span class="gap"></span>
      <button type="button" class=${learned ? "" : "main"} disabled=${!!busy} onClick=${learn}>Learn from ${count(ready, "case")}</button>
    </div>
    <div id="name-problems"><${Problems} problems=${problems.filter((p) => p.part === "name")} /></div>
    <${Problems} problems=${problems.filter((p) => p.part === "learn")} />
    ${busy?.kind === "learn" && html`<${Progress} busy=${busy} what="Learning" />`}
    ${version && !learned && busy?.kind !== "learn" && html`<p class="stale">The cases have changed since ${label(version)}. Learn again to use them.</p>`}
    ${history.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="Versions"><table>
      <thead><tr><th scope="col">Version</th><th scope="col">Cases</th><th scope="col">Effort</th><th scope="col">Time</th><th scope="col">Right of labelled</th><th scope="col">Answered at the gate</th></tr></thead>
      <tbody>${history.map((entry) => html`<tr key=${entry.model} class=${entry.model === version?.model ? "selected" : ""}>
        <th scope="row">${label(entry)}</th><td>${entry.cases}</td><td>${entry.effort}</td><td>${seconds(entry.seconds)}</td>
        <td>${entry.labelled ? `${entry.right} of ${entry.labelled}` : "–"}</td><td>${entry.total ? `${entry.answered} of ${entry.total}` : "–"}</td>
      </tr>`)}</tbody>
    </table></div>`}
  </section>`;
}
