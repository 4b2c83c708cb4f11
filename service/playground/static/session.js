// The server that the page talks to: one piece of work at a time, and what is said of errors.
import { ServerError } from "./client.js";
import { PartsClient } from "./parts-client.js";
import { get, set } from "./store.js";

const KEY = "abmll-playground-key";
export const home = new URL("../", import.meta.url).href.replace(/\/$/, "");
export const client = new PartsClient(home, { key: sessionStorage.getItem(KEY) ?? "" });

export function useKey(key) {
  client.key = key;
  sessionStorage.setItem(KEY, key);
  set({ keyWanted: false });
  return connect();
}

/** Learn what this server serves. */
export async function connect() {
  try {
    const [models, limits] = await Promise.all([client.models(), client.limits()]);
    set({ server: { model: models.data[0].id, limits }, problems: [] });
  } catch (error) {
    set({ problems: [] });
    failed("server", error);
    if (error.status === 503) setTimeout(connect, 3000); // the model is loading
  }
}

/** Run `action` with a signal that `busy.stop` aborts. */
export async function work(kind, fields, action, onError) {
  const controller = new AbortController();
  set({ busy: { kind, since: Date.now(), done: 0, ...fields, stop: () => controller.abort() } });
  try {
    await action(controller.signal);
  } catch (error) {
    if (controller.signal.aborted) set({ notice: { answer: "Stopped. What was answered is kept.", calibrate: "Stopped. Labels that arrived count." }[kind] ?? "Stopped." });
    else onError(error);
  } finally {
    set({ busy: null });
  }
}

/**
 * Put an error beside what is wrong: a case, a question, a field, or else the button. The cases that
 * were sent are rows of the state's list `among`; those of `inputs` are named beside the button.
 */
export function failed(part, error, { cases, among = "cases" } = {}) {
  if ([401, 403].includes(error.status)) set({ keyWanted: true });
  const message = error instanceof ServerError ? error.message : `The server cannot be reached (${error.message}). Is it still running?`;
  const [, index, , id] = (error.param ?? "").match(/^cases\[(\d+)\](\.answers\.(.+)|\.input)?/) ?? [];
  const [, number] = (error.param ?? "").match(/^questions\[(\d+)\]/) ?? [];
  const row = cases?.[index];
  const { questions } = get();
  const place = row ? { part: among === "cases" ? among : part, id: row.id, column: questions.find((q) => q.name === id)?.id ?? "input" }
    : number !== undefined ? { part: "questions", id: questions[number]?.id } : { part };
  const at = row ? `Row ${get()[among].findIndex((one) => one.id === row.id) + 1}: ` : "";
  set((now) => ({ problems: [...now.problems, { ...place, message: at + message }] }));
}

export const label = ({ name, number, adapterId }) => (name ? `${name}@${number}` : adapterId);
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
export const seconds = (value) => (value < 10 ? `${value.toFixed(1)} s` : value < 90 ? `${Math.round(value)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`);
