// Learn from the cases: the adapter, how far it is, and its name.
import { ServerError } from "./client.js";
import { digest } from "./digest.js";
import { questionProblems, rowProblems, wireCases, wireQuestion } from "./questions.js";
import { client, count, failed, label, seconds, work } from "./session.js";
import { get, set } from "./store.js";

/** Return the rows that say something, of which the first `state.most` are learned from (0: all). */
export function chosenCases({ questions, cases, most }) {
  const known = cases.filter((row) => row.input.trim() && questions.some((q) => row.answers[q.id] !== undefined));
  return most ? known.slice(0, most) : known;
}

const last = { from: [], digest: "" };

/** Return a digest of what an adapter is made from. It is asked for at each drawing of the page. */
function contentOf(state) {
  const { questions, cases, effort, most } = state;
  const from = [questions, cases, effort, most];
  if (from.some((part, i) => part !== last.from[i]))
    Object.assign(last, { from, digest: digest([questions.map(wireQuestion), wireCases(questions, chosenCases(state)).cases, effort]) });
  return last.digest;
}

/** Whether the cases are those that the present version learned from. */
export const isLearned = (state) => state.version?.content === contentOf(state);

/** Adapt to the cases, and point the name to the adapter. */
export async function learn() {
  const state = get();
  const { cases, kept } = wireCases(state.questions, chosenCases(state));
  const problems = [...questionProblems(state.questions), ...rowProblems(state.questions, state.cases, "cases")];
  if (!cases.length) problems.push({ part: "cases", message: "There is no case with an input and an answer yet. Fill in a row, or paste some." });
  set({ problems, notice: "" });
  if (problems.length) return;
  const body = { questions: state.questions.map(wireQuestion), cases, adapt: { effort: state.effort } };
  await work("learn", { total: 0, unit: "step ", estimate: estimate(state.server, cases.length) }, async (signal) => {
    const since = performance.now();
    const { id, cache, warnings } = await adapt(body, signal);
    const version = { model: id, adapterId: id, name: "", number: 0, cases: cases.length, effort: state.effort, seconds: (performance.now() - since) / 1000, content: contentOf(state) };
    set({ version });
    await giveName(state, version);
    const { model } = get().version;
    set((now) => ({
      history: [{ ...now.version, content: undefined }, ...now.history.filter((entry) => entry.model !== model)].slice(0, 20),
      notice: `${label(now.version)} learned from ${count(cases.length, "case")} in ${seconds(version.seconds)}${cache === "hit" ? "; it was there already" : ""}. ${warnings.join(" ")}`.trim(),
    }));
  }, (error) => failed("learn", error, { cases: kept }));
}

/** Return the adapter of `body`, and show each step meanwhile. A signal ends the work on the server. */
async function adapt(body, signal) {
  let made = await client.begin(body);
  signal.addEventListener("abort", () => client.cancel(made.id).catch(() => {})); // it may have ended
  while (["queued", "running"].includes(made.status)) {
    for await (const { data } of client.follow(made.id, { signal })) {
      made = data;
      set((now) => ({ busy: now.busy && { ...now.busy, done: made.step, total: made.steps, waits: made.status === "queued" } }));
    }
  }
  if (made.error) throw new ServerError(0, made.error);
  return made.object === "adapter.progress" ? client.adapter(made.id, { signal }) : made;
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

/** Return about how many seconds a fit takes by the server's own prices, or null. */
function estimate(server, count) {
  const prices = (server?.limits.prices ?? []).filter((price) => price.what === "adapt");
  const near = prices.sort((a, b) => Math.abs(a.count - count) - Math.abs(b.count - count) || a.tokens - b.tokens)[0];
  return near ? Math.max(1, (near.seconds * count) / near.count) : null;
}

