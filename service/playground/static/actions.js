// What the buttons do: learn from the cases, answer the inputs, make labelled inputs cases.
import { Client, ServerError } from "./client.js";
import { outcomes, summary } from "./gate.js";
import { questionProblems, readDecided, rowProblems, wireCases, wireQuestion } from "./questions.js";
import { get, set } from "./store.js";

const KEY = "abmll-playground-key";
export const home = new URL("../", import.meta.url).href.replace(/\/$/, "");
export const client = new Client(home, { key: sessionStorage.getItem(KEY) ?? "" });

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

const last = { from: [], digest: "" };

/** Return a digest of what an adapter is made from. It is asked for at each drawing of the page. */
function casesOf({ questions, cases, effort }) {
  const from = [questions, cases, effort];
  if (from.some((part, i) => part !== last.from[i]))
    Object.assign(last, { from, digest: digest([questions.map(wireQuestion), wireCases(questions, cases).cases, effort]) });
  return last.digest;
}

/** Return a short text that differs, but for chance, where JSON values do (cyrb53, public domain). */
function digest(value) {
  const text = JSON.stringify(value);
  let [a, b] = [0xdeadbeef, 0x41c6ce57];
  for (let i = 0; i < text.length; i += 1) {
    a = Math.imul(a ^ text.charCodeAt(i), 2654435761);
    b = Math.imul(b ^ text.charCodeAt(i), 1597334677);
  }
  a = Math.imul(a ^ (a >>> 16), 2246822507) ^ Math.imul(b ^ (b >>> 13), 3266489909);
  b = Math.imul(b ^ (b >>> 16), 2246822507) ^ Math.imul(a ^ (a >>> 13), 3266489909);
  return (4294967296 * (2097151 & b) + (a >>> 0)).toString(36);
}

/** Whether the cases are those that the present version learned from. */
export const isLearned = (state) => state.version?.content === casesOf(state);
const answersKey = (state) => digest([state.version?.model, state.samples, state.questions.map(wireQuestion)]);
const isPending = (row, key) => row.input.trim() && (row.asked !== key || !row.decided);

/** Return how many inputs have no answer of the present version. */
export function pendingCount(state) {
  const key = answersKey(state);
  return state.inputs.reduce((count, row) => count + (isPending(row, key) ? 1 : 0), 0);
}

/** Adapt to the cases, and point the name to the adapter. */
export async function learn() {
  const state = get();
  const { cases, kept } = wireCases(state.questions, state.cases.filter((row) => row.input.trim()));
  const problems = [...questionProblems(state.questions), ...rowProblems(state.questions, state.cases, "cases")];
  if (!cases.length) problems.push({ part: "cases", message: "There is no case with an input and an answer yet. Fill in a row, or paste some." });
  set({ problems, notice: "" });
  if (problems.length) return;
  const body = { input: kept[0].input, questions: state.questions.map(wireQuestion), abmll: { cases, adapt: { effort: state.effort }, samples: 0 } };
  await work("learn", { total: 0, estimate: estimate(state.server, cases.length) }, async (signal) => {
    const { abmll } = await client.decide(body, { signal });
    const version = { model: abmll.adapter_id, adapterId: abmll.adapter_id, name: "", number: 0, cases: cases.length, seconds: abmll.timings.total_seconds, content: casesOf(state) };
    set({ version });
    await giveName(state, version);
    const { model } = get().version;
    set((now) => ({
      history: [{ ...now.version, content: undefined }, ...now.history.filter((entry) => entry.model !== model)].slice(0, 20),
      notice: `${label(now.version)} learned from ${count(cases.length, "case")} in ${seconds(version.seconds)}${abmll.cache === "hit" ? "; it was there already" : ""}. ${abmll.warnings.join(" ")}`.trim(),
    }));
  }, (error) => failed("learn", error, { cases: kept }));
}

async function giveName(state, version) {
  const name = state.name.trim();
  if (!name) return;
  try {
    const { current } = await client.name(name).catch((error) => (error.status === 404 ? {} : Promise.reject(error)));
    const made = current?.adapter_id === version.adapterId ? current
      : (await client.putName(name, { adapter_id: version.adapterId, note: `${count(version.cases, "case")}, from the playground` })).current;
    set({ version: { ...version, model: made.model, name, number: made.version } });
  } catch (error) {
    failed("name", error);
  }
}

/** Answer all inputs that the present version has not answered. */
export async function answer() {
  const state = get();
  const problems = questionProblems(state.questions);
  set({ problems, notice: "" });
  if (problems.length) return;
  const key = answersKey(state);
  const rows = state.inputs.filter((row) => isPending(row, key));
  if (!rows.length) return;
  const body = { model: state.version?.model, questions: state.questions.map(wireQuestion), abmll: { samples: state.samples, gate: { min_confidence: state.gate } } };
  const found = new Map();
  let shown = 0;
  const flush = (done) => {
    if (!found.size) return;
    set((now) => ({
      inputs: now.inputs.map((row) => (found.has(row.id) ? { ...row, ...found.get(row.id) } : row)),
      selected: now.selected ?? rows[0].id,
      busy: now.busy && { ...now.busy, done },
    }));
    found.clear();
  };
  let done = 0;
  let refused = 0;
  await work("answer", { total: rows.length }, async (signal) => {
    try {
      for await (const { index, decision, error } of client.decideAll(rows.map((row) => row.input), body, { signal })) {
        if (error && !isOfInput(error)) throw error;
        done += 1;
        refused += error ? 1 : 0;
        found.set(rows[index].id, error ? { decided: null, asked: "", problem: error.message } : { decided: decidedOf(state.questions, decision), model: decision.model, asked: key, problem: "" });
        if (performance.now() - shown > 150) {
          flush(done);
          shown = performance.now();
        }
      }
    } finally {
      flush(done);
    }
    set((now) => ({ history: now.history.map((entry) => (entry.model === state.version?.model ? { ...entry, ...ofVersion(now) } : entry)) }));
    const by = state.version ? label(state.version) : `${get().server?.model ?? "the base model"}, without cases,`;
    set({ notice: `${by} answered ${count(done - refused, "input")}${refused ? `; ${refused} could not be answered, and say why` : ""}.` });
  }, (error) => failed("answer", error));
}

function ofVersion({ questions, inputs, gate }) {
  const { total, given, labelled, right } = summary(outcomes(questions, inputs), gate);
  return { total, answered: given, labelled, right };
}

const decidedOf = (questions, decision) =>
  Object.fromEntries(questions.map((question, i) => [question.id, readDecided(question, decision.answers[i])]));
const isOfInput = (error) => error instanceof ServerError && error.status === 400 && (error.param ?? "").startsWith("input");

/** Whether the input has a label, and is no case yet. */
export const isTeachable = (row) => !row.taught && Object.keys(row.answers).length > 0;

/** Make cases of labelled inputs, all or the one with this id. They count as seen from then on. */
export function teach(id) {
  set((now) => {
    const ready = now.inputs.filter((row) => isTeachable(row) && (!id || row.id === id));
    const made = ready.map((row) => ({ id: `c${row.id}`, input: row.input, answers: { ...row.answers } }));
    return {
      cases: [...now.cases.filter((row) => row.input.trim() || Object.keys(row.answers).length), ...made],
      inputs: now.inputs.map((row) => (ready.includes(row) ? { ...row, taught: true } : row)),
      notice: `${count(made.length, "labelled input")} became ${made.length === 1 ? "a case" : "cases"}. Learn again for the next version.`,
    };
  });
}

/** Run `action` with a signal that `busy.stop` aborts. */
async function work(kind, fields, action, onError) {
  const controller = new AbortController();
  set({ busy: { kind, since: Date.now(), done: 0, ...fields, stop: () => controller.abort() } });
  try {
    await action(controller.signal);
  } catch (error) {
    if (controller.signal.aborted) set({ notice: "Stopped. What was answered is kept." });
    else onError(error);
  } finally {
    set({ busy: null });
  }
}

/** Return about how many seconds a fit takes by the server's own prices, or null. */
function estimate(server, count) {
  const prices = (server?.limits.prices ?? []).filter((price) => price.what === "adapt");
  const near = prices.sort((a, b) => Math.abs(a.count - count) - Math.abs(b.count - count) || a.tokens - b.tokens)[0];
  return near ? Math.max(1, (near.seconds * count) / near.count) : null;
}

/** Put an error beside what is wrong: a case, a question, a field, or else the button. */
function failed(part, error, sent = {}) {
  if ([401, 403].includes(error.status)) set({ keyWanted: true });
  const message = error instanceof ServerError ? error.message : `The server cannot be reached (${error.message}). Is it still running?`;
  const [, index, , id] = (error.param ?? "").match(/^abmll\.cases\[(\d+)\](\.answers\.(.+)|\.input)?/) ?? [];
  const [, number] = (error.param ?? "").match(/^questions\[(\d+)\]/) ?? [];
  const row = sent.cases?.[index];
  const { questions } = get();
  const place = row ? { part: "cases", id: row.id, column: questions.find((q) => q.name === id)?.id ?? "input" }
    : number !== undefined ? { part: "questions", id: questions[number]?.id } : { part };
  const at = row ? `Row ${get().cases.findIndex((one) => one.id === row.id) + 1}: ` : "";
  set((now) => ({ problems: [...now.problems, { ...place, message: at + message }] }));
}

export const label = ({ name, number, adapterId }) => (name ? `${name}@${number}` : adapterId);
export const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
export const seconds = (value) => (value < 10 ? `${value.toFixed(1)} s` : value < 90 ? `${Math.round(value)} s` : `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`);
