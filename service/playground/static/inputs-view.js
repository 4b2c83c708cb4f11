// Inputs and their answers: the table, what is asked, labels, and the answers as a file.
import { answer, isTeachable, pendingCount, teach } from "./actions.js";
import { Answers } from "./answers-view.js";
import { answersTable } from "./answers.js";
import { gatesOf } from "./calibration.js";
import { save, writeCsv } from "./files.js";
import { decide } from "./gate.js";
import { Grid } from "./grid.js";
import { html, useState } from "./htm-preact.js";
import { Problems, Progress, percent } from "./parts.js";
import { newId } from "./questions.js";
import { count, label } from "./session.js";
import { get, set } from "./store.js";

export function Inputs({ state, openImport }) {
  const [text, setText] = useState("");
  const [reveal, setReveal] = useState(null);
  const { questions, inputs, busy, version, selected, problems } = state;
  const gates = gatesOf(state);
  const pending = pendingCount(state);
  const labelled = inputs.filter(isTeachable).length;
  const row = inputs.find((one) => one.id === selected) ?? null;
  const select = (id) => {
    set({ selected: id });
    setReveal(get().inputs.findIndex((one) => one.id === id));
  };
  const unsure = nextUnsure(state, gates);
  const most = state.server?.limits.max_samples ?? 64;
  const add = () => {
    const made = text.split("\n").map((line) => line.trim()).filter(Boolean).map((input) => ({ id: newId(), input, answers: {} }));
    if (!made.length) return;
    set((now) => ({ inputs: [...made, ...now.inputs], selected: made[0].id }));
    setText("");
    setReveal(0);
  };
  const columns = [
    { key: "#", title: "", min: 2.6, cell: (_, index) => html`<span class="number">${index + 1}</span>` },
    { key: "input", title: "Input", min: 12, grow: 4, cell: (one) => html`<span class="clip" title=${one.input}>${one.input}</span>` },
    ...questions.map((question) => ({
      key: question.id, title: question.name || "(no name)", hint: question.instructions, min: 6.5, grow: 1,
      cell: (one) => html`<${Cell} row=${one} question=${question} gate=${gates[question.id]} />`,
    })),
    { key: "x", title: "", min: 2.4, cell: (one, index) => html`<button type="button" class="icon" aria-label=${`Remove input ${index + 1}`} title="Remove" onClick=${(e) => (e.stopPropagation(), set((now) => ({ inputs: now.inputs.filter((other) => other.id !== one.id) })))}>×</button>` },
  ];
  const keys = (e) => e.key === "Enter" && !e.shiftKey && !e.isComposing && (e.preventDefault(), add());
  return html`<section aria-labelledby="inputs-title">
    <h2 id="inputs-title"><span class="step" aria-hidden="true">4</span> Inputs and answers <small>${inputs.length.toLocaleString("en")}</small></h2>
    <div class="line">
      <textarea class="wide" rows="2" aria-label="New inputs, one a line" placeholder="Type or paste inputs, one a line, and press Enter" value=${text} onInput=${(e) => setText(e.currentTarget.value)} onKeyDown=${keys}></textarea>
      <button type="button" onClick=${add}>Add</button>
    </div>
    <div class="bar">
      <button type="button" onClick=${() => openImport("inputs")}>Paste or open a file</button>
      <button type="button" class="quiet" disabled=${!inputs.length || !!busy} onClick=${() => set({ inputs: [], selected: null, problems: [] })}>Remove all</button>
      <span class="gap"></span>
      <button type="button" class=${version ? "main" : ""} disabled=${!!busy || !pending} onClick=${answer}>${pending || !inputs.length ? `Answer ${count(pending, "input")}` : "All are answered"}</button>
    </div>
    <p class="hint">${version ? `${label(version)} answers` : "Nothing is learned yet: the base model answers without cases"}, with <input class="short" aria-label="Samples" type="number" min="0" max=${most} value=${state.samples}
      onChange=${(e) => set({ samples: Math.min(most, Math.max(0, Math.round(Number(e.currentTarget.value) || 0))) })} /> samples.</p>
    ${busy?.kind === "answer" && html`<${Progress} busy=${busy} what="Answering" />`}
    <${Problems} problems=${problems.filter((p) => ["answer", "inputs"].includes(p.part))} onGo=${(p) => select(p.id)} />
    <${Grid} label="Inputs and answers" rows=${inputs} columns=${columns} rowHeight=${48} height=${48 * 7.5} reveal=${reveal}
      selected=${selected} onSelect=${select} rowClass=${(one) => (one.taught ? "taught" : "")} />
    ${row && html`<${Answers} row=${row} state=${state} />`}
    <div class="bar">
      <button type="button" disabled=${!unsure} onClick=${() => select(unsure)}>Next unsure answer</button>
      <button type="button" disabled=${!labelled || !!busy} onClick=${() => teach()}>Make all ${labelled} labelled cases</button>
      <span class="gap"></span>
      <button type="button" disabled=${!inputs.some((one) => one.decided)} onClick=${() => save("answers.csv", writeCsv(answersTable(get())))}>Download answers</button>
    </div>
  </section>`;
}

/** Return the id of the next input, after the selected one, with an answer that abstains and no label. */
function nextUnsure({ inputs, questions, selected }, gates) {
  const at = inputs.findIndex((row) => row.id === selected);
  const order = [...inputs.slice(at + 1), ...inputs.slice(0, at + 1)];
  return order.find((row) => row.decided && !row.taught && row.id !== selected && questions.some((q) => row.decided[q.id] && row.answers[q.id] === undefined && !decide(row.decided[q.id], gates[q.id]).given))?.id;
}

function Cell({ row, question, gate }) {
  const decided = row.decided?.[question.id];
  if (!decided) return row.problem ? html`<span class="problems clip" title=${row.problem}>${row.problem}</span>` : html`<span class="unset">–</span>`;
  const { given } = decide(decided, gate);
  const known = row.answers[question.id];
  const right = decided.options[decided.top] === known;
  return html`<span class=${`cell ${given ? "given" : "abstains"}`}>
    <span class="clip">${decided.options[decided.top]}${known == null ? "" : html` <b class=${right ? "right" : "wrong"} title=${right ? "right" : `wrong: ${known}`}>${right ? "✓" : "✗"}<span class="unseen">${right ? "right" : "wrong"}</span></b>`}</span>
    <span class="mini" aria-hidden="true"><i style=${{ width: `${100 * decided.confidence}%` }}></i></span>
    <span class="unseen">${given ? "given" : "abstains"},</span> <small>${percent(decided.confidence)}</small>
  </span>`;
}
