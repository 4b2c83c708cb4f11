// Calibrate the version: its answers to labelled inputs make certificates, on the server.
import { changedLabels, counted, newLabels, readCalibrations } from "./calibration.js";
import { questionProblems, rowProblems, wireCases } from "./questions.js";
import { client, count, failed, label, work } from "./session.js";
import { get, set } from "./store.js";

const AT_ONCE = 32; // labels of a request, so that the page can show how far it is
const NO_LABELS = "No input has a right answer that could count. Give right answers to inputs above, or paste labelled inputs. Cases do not count: the model has seen their answers.";

/** Send the labels that have not counted yet; `anew` forgets what counted, and sends all. */
export async function calibrate(anew) {
  const state = get();
  const problems = [...questionProblems(state.questions), ...rowProblems(state.questions, state.inputs, "calibrate")];
  if (newLabels(state, true).every(({ rows }) => !rows.length)) problems.push({ part: "calibrate", message: NO_LABELS });
  set({ problems, notice: "" });
  if (problems.length) return;
  const sets = newLabels(state, anew).filter(({ rows }) => rows.length);
  const total = sets.reduce((sum, { rows }) => sum + rows.length, 0);
  const { adapterId } = state.version;
  let sent = [];
  await work("calibrate", { total }, async (signal) => {
    let done = 0;
    try {
      for (const { question, rows } of sets)
        for (let from = 0; from < rows.length; from += AT_ONCE) {
          sent = rows.slice(from, from + AT_ONCE);
          const { cases } = wireCases([question], sent);
          await send(adapterId, { question: question.name, cases, samples: state.samples, replace: anew && from === 0, more_follow: from + AT_ONCE < rows.length }, signal);
          done += sent.length;
          const ids = new Set(sent.map(({ id }) => id));
          set((now) => ({
            inputs: now.inputs.map((row) => (ids.has(row.id) ? counted(row, adapterId, question.id) : row)),
            busy: now.busy && { ...now.busy, done },
          }));
        }
    } catch (error) {
      await show(state).catch(() => {}); // what counted so far, under the error that ended it
      throw error;
    }
    await show(state);
    const changed = changedLabels(get());
    set({ notice: `${label(state.version)} is calibrated${total ? ` with ${count(total, "label")}` : ": there are no new labels"}.${changed ? ` ${count(changed, "label")} changed after it counted, and the first one stays.` : ""}` });
  }, (error) => failed("calibrate", error, { cases: sent, among: "inputs" }));
}

/** Send labels. That all of them counted before, from another page, is no error. */
async function send(adapterId, body, signal) {
  try {
    await client.calibrate(adapterId, body, { signal });
  } catch (error) {
    if (error.code !== "invalid_request" || error.param !== "cases") throw error;
  }
}

async function show(state) {
  const found = await client.calibration(state.version.adapterId);
  set({ calibration: readCalibrations(found, state) });
}
