// The questions, as cards that can be changed.
import { html, useRef } from "./htm-preact.js";
import { Problems } from "./parts.js";
import { KINDS, newQuestion } from "./questions.js";
import { get, set } from "./store.js";

const change = (id, fields) =>
  set((now) => ({ questions: now.questions.map((q) => (q.id === id ? { ...q, ...fields } : q)), problems: now.problems.filter((p) => p.id !== id) }));

function setKind(question, kind) {
  const options = kind === "predicate" ? [] : question.options.length ? question.options : newQuestion(kind).options;
  change(question.id, { kind, options });
}

function add() {
  const { questions } = get();
  let number = questions.length + 1;
  while (questions.some((q) => q.name === `question${number}`)) number += 1;
  set({ questions: [...questions, newQuestion("predicate", `question${number}`)] });
}

function remove(id) {
  const without = (rows) => rows.map((row) => ({ ...row, answers: Object.fromEntries(Object.entries(row.answers).filter(([key]) => key !== id)) }));
  set((now) => ({ questions: now.questions.filter((q) => q.id !== id), cases: without(now.cases), inputs: without(now.inputs), problems: [] }));
}

export function Questions({ state }) {
  return html`<section aria-labelledby="questions-title">
    <h2 id="questions-title"><span class="step" aria-hidden="true">1</span> Questions</h2>
    <p class="hint">What do you want to know about each input?</p>
    <${Problems} problems=${state.problems.filter((p) => p.part === "questions" && !p.id)} />
    <div class="cards">
      ${state.questions.map((question) => html`<${Question} key=${question.id} question=${question}
        problems=${state.problems.filter((p) => p.part === "questions" && p.id === question.id)} />`)}
    </div>
    <div class="bar"><button type="button" onClick=${add}>Add a question</button></div>
  </section>`;
}

function Question({ question, problems }) {
  const { id, name, kind, instructions } = question;
  const called = name || "without a name";
  return html`<div class="card" role="group" aria-label=${`Question ${called}`}>
    <div class="line">
      <input class="name" aria-label="Name of the question" placeholder="name" value=${name} spellcheck="false"
        onInput=${(e) => change(id, { name: e.currentTarget.value })} />
      <select aria-label=${`Type of ${called}`} value=${kind} onChange=${(e) => setKind(question, e.currentTarget.value)}>
        ${Object.entries(KINDS).map(([value, text]) => html`<option value=${value}>${text}</option>`)}
      </select>
      <button type="button" class="icon" aria-label=${`Remove the question ${called}`} title="Remove" onClick=${() => remove(id)}>×</button>
    </div>
    <input class="wide" aria-label=${`What ${called} asks`} placeholder="What is asked about the input?" value=${instructions}
      onInput=${(e) => change(id, { instructions: e.currentTarget.value })} />
    ${kind !== "predicate" && html`<${Options} question=${question} />`}
    <${Problems} problems=${problems} />
  </div>`;
}

function Options({ question }) {
  const { id, kind, options, name } = question;
  const noun = kind === "score" ? "level" : "option";
  const edit = (at, fields) => change(id, { options: options.map((option, i) => (i === at ? { ...option, ...fields } : option)) });
  const before = useRef("");
  // Answers follow an option that is renamed, once its new text is there as a whole.
  const renamed = (at) => {
    const [old, value] = [before.current, options[at].value];
    if (!old || !value || old === value || options.some((option, i) => i !== at && [old, value].includes(option.value))) return;
    const follow = (rows) => rows.map((row) => (row.answers[id] === old ? { ...row, answers: { ...row.answers, [id]: value } } : row));
    set((now) => ({ cases: follow(now.cases), inputs: follow(now.inputs) }));
  };
  return html`<ol class="options" aria-label=${kind === "score" ? "Levels, from the lowest" : "Options"}>
    ${options.map((option, at) => html`<li key=${at}>
      <input aria-label=${`${noun} ${at + 1} of ${name}`} placeholder=${noun} value=${option.value}
        onFocus=${() => (before.current = option.value)} onBlur=${() => renamed(at)} onInput=${(e) => edit(at, { value: e.currentTarget.value })} />
      <input aria-label=${`When ${noun} ${at + 1} of ${name} applies`} placeholder="when it applies (may stay empty)" value=${option.description}
        onInput=${(e) => edit(at, { description: e.currentTarget.value })} />
      <button type="button" class="icon" aria-label=${`Remove ${noun} ${option.value || at + 1}`} title="Remove"
        onClick=${() => change(id, { options: options.filter((_, i) => i !== at) })}>×</button>
    </li>`)}
    <li class="more"><button type="button" class="link" onClick=${() => change(id, { options: [...options, { value: "", description: "" }] })}>Add ${kind === "score" ? "a level" : "an option"}</button></li>
  </ol>`;
}
