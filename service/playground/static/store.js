// The state of the page, and what of it the browser keeps.
import { example } from "./example.js";
import { useEffect, useState } from "./htm-preact.js";
import { newId, newQuestion } from "./questions.js";

const KEY = "abmll-playground-1";
const KEPT = ["questions", "cases", "inputs", "name", "effort", "samples", "gate", "version", "history", "selected"];
const MOST_CHARS = 4_000_000; // browsers keep 5 MB for each origin

const base = {
  effort: "full", // as `adapt.effort`
  samples: 16,
  gate: 0.7,
  version: null, // the adapter that answers: {model, adapterId, name, number, cases, seconds, content}
  history: [], // versions so far, newest first, with what they answered
  selected: null, // id of the input whose answers are shown
  problems: [], // {part, id, column, message}
  notice: "", // what just happened, for the eye and for screen readers
  busy: null, // {kind, since, done, total, estimate, stop}
  server: null, // {model, limits}
  keyWanted: false,
  tooLarge: false,
};

export const emptyRow = () => ({ id: newId(), input: "", answers: {} });
export const emptyState = () => ({ questions: [newQuestion("predicate", "question1")], cases: [emptyRow()], inputs: [], name: "", version: null, history: [], selected: null, problems: [] });
export const exampleState = () => ({ ...example(), version: null, history: [], selected: null, problems: [] });

let state = { ...base, ...(restored() ?? exampleState()) };
const listeners = new Set();
let saving = 0;

export const get = () => state;

/** Change the state: `patch` is fields, or a function from the state to fields. */
export function set(patch) {
  const fields = typeof patch === "function" ? patch(state) : patch;
  state = { ...state, ...fields };
  for (const listener of listeners) listener(state);
  if (KEPT.some((field) => field in fields)) {
    clearTimeout(saving);
    saving = setTimeout(keep, 300);
  }
}

/** Change the row with this id in `part`, `cases` or `inputs`. */
export const setRow = (part, id, change) =>
  set((now) => ({ [part]: now[part].map((row) => (row.id === id ? { ...row, ...change(row) } : row)), problems: now.problems.filter((p) => p.id !== id) }));

/** Return the state, and draw the component again when it changes. */
export function useStore() {
  const [seen, see] = useState(state);
  useEffect(() => {
    listeners.add(see);
    see(state);
    return () => listeners.delete(see);
  }, []);
  return seen;
}

function keep() {
  const text = JSON.stringify(Object.fromEntries(KEPT.map((field) => [field, state[field]])));
  let fits = text.length <= MOST_CHARS;
  try {
    if (fits) localStorage.setItem(KEY, text);
  } catch {
    fits = false; // the browser keeps less, or nothing
  }
  if (state.tooLarge === fits) set({ tooLarge: !fits });
}

function restored() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY));
    const lists = found && ["questions", "cases", "inputs", "history"].every((field) => Array.isArray(found[field]));
    return lists ? found : null;
  } catch {
    return null;
  }
}

addEventListener("pagehide", keep);
