// The page: its header, its sections, and files that are dropped on them.
import { Cases } from "./cases-view.js";
import { Check } from "./check-view.js";
import { Compare } from "./compare-view.js";
import { Gate } from "./gate-view.js";
import { html, render, useEffect, useState } from "./htm-preact.js";
import { Import } from "./import-view.js";
import { Inputs } from "./inputs-view.js";
import { Learn } from "./learn-view.js";
import { Problems } from "./parts.js";
import { Questions } from "./questions-view.js";
import { connect, useKey } from "./session.js";
import { Snippets } from "./snippets-view.js";
import { emptyState, exampleState, set, useStore } from "./store.js";

function App() {
  const state = useStore();
  const [target, setTarget] = useState(null);
  const [over, setOver] = useState("");
  const openImport = (part, options) => setTarget({ part, ...options });
  useEffect(() => void connect(), []);
  const drops = (part) => ({
    class: over === part ? "drop over" : "drop",
    onDragOver: (e) => e.dataTransfer.types.includes("Files") && (e.preventDefault(), setOver(part)),
    onDragLeave: () => setOver(""),
    onDrop: (e) => {
      if (!e.dataTransfer.files.length) return;
      e.preventDefault();
      setOver("");
      setTarget({ part, file: e.dataTransfer.files[0] });
    },
  });
  const restart = (fields) => set({ ...fields, notice: "" });
  return html`
    <header>
      <h1>Playground</h1>
      <p>${state.server ? html`<code>${state.server.model}</code>` : "connecting …"}</p>
      <span class="gap"></span>
      <nav aria-label="Page">
        <button type="button" class="quiet" disabled=${!!state.busy} onClick=${() => restart(exampleState())}>Load the example</button>
        <button type="button" class="quiet" disabled=${!!state.busy} onClick=${() => restart(emptyState())}>Start empty</button>
        <a href="docs">HTTP interface</a>
      </nav>
    </header>
    ${state.keyWanted && html`<${Key} />`}
    <${Problems} problems=${state.problems.filter((p) => p.part === "server")} />
    ${state.tooLarge && html`<p class="stale" role="status">This is more than a browser keeps for a page: a reload loses what changed last. Download the answers before you leave.</p>`}
    <p class="lead">Teach a language model with a few cases. Its answers say how sure they are, and abstain where they are not.</p>
    <p class="notice" role="status">${state.notice}</p>
    <div class="columns">
      <div ...${drops("cases")}>
        <${Questions} state=${state} />
        <${Cases} state=${state} openImport=${openImport} />
        <${Learn} state=${state} />
        <${Check} state=${state} />
      </div>
      <div ...${drops("inputs")}>
        <${Inputs} state=${state} openImport=${openImport} />
        <${Gate} state=${state} openImport=${openImport} />
        <${Compare} state=${state} />
        <${Snippets} state=${state} />
      </div>
    </div>
    ${target && html`<${Import} target=${target} close=${() => setTarget(null)} />`}`;
}

function Key() {
  const [key, setKey] = useState("");
  return html`<form class="key" onSubmit=${(e) => (e.preventDefault(), useKey(key))}>
    <label>This server wants a key <input type="password" autocomplete="off" value=${key} onInput=${(e) => setKey(e.currentTarget.value)} /></label>
    <button class="main">Use it</button>
    <span class="hint">It stays in this tab.</span>
  </form>`;
}

const root = document.getElementById("app");
root.replaceChildren();
render(html`<${App} />`, root);
