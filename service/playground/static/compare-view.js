// Two versions side by side: numbers on the labelled inputs, and bars for the selected one.
import { Bars } from "./answers-view.js";
import { answeredBy, BASE, compare, comparison, missing } from "./compare.js";
import { html, useMemo } from "./htm-preact.js";
import { Problems, Progress, percent } from "./parts.js";
import { count, label } from "./session.js";
import { set } from "./store.js";

export function Compare({ state }) {
  const { history, busy, problems, questions, inputs, selected, gate, samples, compared } = state;
  const versions = [...history, BASE];
  const chosen = [state.left ?? versions[1]?.model, state.right ?? versions[0].model].map((model, i) =>
    versions.find((one) => one.model === model) ?? versions[1 - i] ?? BASE);
  const models = chosen.map(({ model }) => model);
  const found = useMemo(() => comparison(state, models), [questions, inputs, gate, samples, compared, ...models]);
  if (!history.length) return null;
  const left = missing(state, models);
  const answered = found.sides.every(({ total }) => total);
  const pick = (side, at, title) => html`<label>${title} <select value=${models[at]} onChange=${(e) => set({ [side]: e.currentTarget.value })}>
    ${versions.map((one) => html`<option value=${one.model}>${described(one)}</option>`)}</select></label>`;
  return html`<section aria-labelledby="compare-title">
    <h2 id="compare-title"><span class="step" aria-hidden="true">6</span> Compare</h2>
    <p class="hint">Two versions answer the same inputs. For another effort or number of cases, learn again with it.</p>
    <div class="line wrap">${pick("left", 0, "First version")}${pick("right", 1, "Second version")}
      <span class="gap"></span>
      <button type="button" disabled=${!!busy || !left || models[0] === models[1]} onClick=${() => compare(models)}>Compare on ${count(inputs.length, "input")}</button></div>
    ${busy?.kind === "compare" && html`<${Progress} busy=${busy} what="Comparing" />`}
    <${Problems} problems=${problems.filter((p) => p.part === "compare")} />
    ${answered && html`<${Numbers} found=${found} chosen=${chosen} />
      <p role="status">${inWords(found, chosen)} ${found.differing.length > 0 && html`<button type="button" class="link" onClick=${() => set({ selected: next(found.differing, selected) })}>Next difference</button>`}</p>
      <${SideBySide} state=${state} chosen=${chosen} />`}
  </section>`;
}

const described = (one) => (one.model ? `${label(one)}: ${count(one.cases, "case")}, ${one.effort}` : "without cases");
const next = (ids, id) => ids[(ids.indexOf(id) + 1) % ids.length];

function Numbers({ found: { sides, questions }, chosen }) {
  const right = ({ labelled, right: hits }) => (labelled ? `${hits} of ${labelled}` : "–");
  const rows = [
    ["Right of labelled", sides.map(right)],
    ...(questions.length > 1 ? questions.map(({ name, sides: own }) => [name, own.map(right)]) : []),
    ["Answered at the gate", sides.map(({ given, total }) => `${given} of ${total}`)],
    ["Wrong of those with a label", sides.map(({ wrong, givenLabelled: n }) => (n ? `${wrong} of ${n} (${percent(wrong / n)})` : "–"))],
  ];
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Comparison"><table>
    <thead><tr><td></td>${chosen.map((one) => html`<th scope="col">${label(one)}</th>`)}</tr></thead>
    <tbody>${rows.map(([name, cells]) => html`<tr key=${name}><th scope="row">${name}</th>${cells.map((cell) => html`<td>${cell}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

function inWords({ differing, only, sides }, chosen) {
  const differ = differing.length ? `${count(differing.length, "input")} ${differing.length === 1 ? "has" : "have"} different answers.` : "All answers are the same.";
  if (!sides[0].labelled) return `${differ} Give right answers to some inputs to see which is right.`;
  return `${differ} Only ${label(chosen[0])} is right ${times(only[0])}, only ${label(chosen[1])} ${times(only[1])}. Few labels tell little.`;
}

const times = (n) => (n === 1 ? "once" : `${n} times`);

function SideBySide({ state, chosen }) {
  const at = state.inputs.findIndex((row) => row.id === state.selected);
  const rows = chosen.map(({ model }) => answeredBy(state, model)[at]);
  if (!rows.every((row) => row?.decided)) return null;
  return html`<div class="answers"><blockquote>${rows[0].input}</blockquote>
    ${state.questions.map((question) => html`<div class="answer" key=${question.id}><h3>${question.name}</h3>
      <div class="sides">${chosen.map((one, i) => html`<div role="group" aria-label=${`${question.name} by ${label(one)}`}><p class="hint">${label(one)}</p>
        <${Bars} decided=${rows[i].decided[question.id]} known=${rows[i].answers[question.id]} /></div>`)}</div></div>`)}
  </div>`;
}
