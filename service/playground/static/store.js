// The state of the page, and what of it the browser keeps.
import { example } from "./example.js";
import { useEffect, useState } from "./htm-preact.js";
import { newId, newQuestion } from "./questions.js";

const KEY = "abmll-playground-1";
const KEPT = ["questions", "cases", "inputs", "name", "effort", "most", "samples", "gate", "target", "version", "history", "checked", "calibration", "selected"];
const MOST_CHARS = 4_000_000; // browsers keep 5 MB for each origin

const base = {
  effort: "full", // as `adapt.effort`
  most: 0, // the first cases that are learned from; 0 stands for all
  samples: 16,
  gate: 0.7,
  target: 0.05, // the share of wrong answers that a certificate is asked for
  version: null, // the adapter that answers: {model, adapterId, name, number, cases, effort, seconds, content}
  history: [], // versions so far, newest first, with what they answered
  checked: null, // the latest diagnosis, in words
  calibration: null, // what the server promises of a version: see calibration.js
  compared: {}, // answers of versions for a comparison, by what was asked and the id of the input
  shown: null, // {id} of a case to scroll to
  selected: null, // id of the input whose answers are shown
  problems: [], // {part, id, column, message}
  notice: "", // what just happened, for the eye and for screen readers
  busy: null, // {kind, since, done, total, unit, estimate, waits, stop}
  server: null, // {model, limits}
  keyWanted: false,
  tooLarge: false,
};

export const emptyRow = () => ({ id: newId(), input: "", answers: {} });
export const emptyState = () => ({ questions: [newQuestion("predicate", "question1")], cases: [emptyRow()], inputs: [], name: "", version: null, history: [], checked: null, calibration: null, most: 0, selected: null, problems: [] });
export const exampleState = () => ({ ...example(), version: null, history: [], checked: null, calibration: null, most: 0, selected: null, problems: [] });

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
