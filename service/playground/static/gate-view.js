// The gate: a slider, what it answers, and the curve of risk against coverage.
import { certificatesOf, gatesOf } from "./calibration.js";
import { Calibration } from "./calibration-view.js";
import { html, useMemo, useState } from "./htm-preact.js";
import { curve, outcomes, summary } from "./gate.js";
import { percent } from "./parts.js";
import { set } from "./store.js";

const WIDTH = 420;
const HEIGHT = 190;
const EDGE = { left: 58, right: 24, top: 10, bottom: 34 };

export function Gate({ state, openImport }) {
  const [only, setOnly] = useState("");
  const { gate, questions, inputs, cases, target, version, samples, calibration } = state;
  const known = questions.some((q) => q.id === only) ? only : "";
  const gates = gatesOf(state);
  const asked = [questions, inputs, known, target, version, samples, calibration];
  const found = useMemo(() => outcomes(questions, inputs, known, gates), asked);
  const numbers = summary(found, gate);
  const all = useMemo(() => (version ? certificatesOf(state) : []), [...asked, cases]);
  const certificates = all.filter(({ id }) => !known || id === known);
  const certified = certificates.length === 1 ? certificates[0].threshold : undefined;
  return html`<section aria-labelledby="gate-title">
    <h2 id="gate-title"><span class="step" aria-hidden="true">5</span> Gate</h2>
    <p class="hint">Below this confidence an answer abstains, and a person decides.</p>
    <div class="line wrap">
      <label class="slider">Least confidence <b>${gate.toFixed(2)}</b>
        <input type="range" aria-label="Least confidence" min="0" max="1" step="0.01" value=${gate} onInput=${(e) => set({ gate: Number(e.currentTarget.value) })} /></label>
      <label>Of <select value=${known} onChange=${(e) => setOnly(e.currentTarget.value)}>
        <option value="">all questions</option>${questions.map((q) => html`<option value=${q.id}>${q.name}</option>`)}
      </select></label>
    </div>
    <p class="numbers" role="status">${found.length ? sentence(numbers) : "No answers yet."}</p>
    ${numbers.labelled > 0
      ? html`<${Curve} points=${curve(found)} numbers=${numbers} certified=${certified} text=${sentence(numbers)} />
        <p class="hint">A confidence that is chosen on a few labels promises nothing about later inputs. A calibrated gate does.</p>`
      : found.length > 0 && html`<p class="hint">Give right answers to some inputs, and a curve shows how often the given answers are wrong.</p>`}
    <${Calibration} state=${state} certificates=${certificates} openImport=${openImport} />
  </section>`;
}

function sentence({ total, given, labelled, givenLabelled, wrong }) {
  if (!given) return `None of the ${total} answers is given.`;
  const answered = `${given} of ${total} answers are given (${percent(given / total)})`;
  if (!labelled) return `${answered}.`;
  if (!givenLabelled) return `${answered}; none of them has a label.`;
  return `${answered}; of ${givenLabelled} with a label, ${wrong} ${wrong === 1 ? "is" : "are"} wrong (${percent(wrong / givenLabelled)}).`;
}

function Curve({ points, numbers: { labelled, givenLabelled, wrong }, certified, text }) {
  const most = Math.max(0.1, ...points.map((point) => point.error));
  const top = Math.min(1, Math.ceil(most * 10) / 10);
  const x = (coverage) => EDGE.left + coverage * (WIDTH - EDGE.left - EDGE.right);
  const y = (error) => EDGE.top + (1 - error / top) * (HEIGHT - EDGE.top - EDGE.bottom);
  const lastFrom = (least) => points.filter((point) => point.confidence >= least).at(-1);
  const at = givenLabelled ? { coverage: givenLabelled / labelled, error: wrong / givenLabelled } : undefined;
  const accepted = certified === undefined ? undefined : lastFrom(certified);
  const line = points.map((point, i) => `${i ? "L" : "M"}${x(point.coverage).toFixed(1)} ${y(point.error).toFixed(1)}`).join("");
  return html`<svg class="curve" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} role="img" aria-label=${`Risk against coverage. ${text}`}>
    ${[0, 0.5, 1].map((share) => html`<g key=${`y${share}`}>
      <line class="rule" x1=${EDGE.left} x2=${WIDTH - EDGE.right} y1=${y(share * top)} y2=${y(share * top)} />
      <text x=${EDGE.left - 6} y=${y(share * top) + 4} text-anchor="end">${percent(share * top)}</text></g>`)}
    ${[0, 0.25, 0.5, 0.75, 1].map((share) => html`<text key=${`x${share}`} x=${x(share)} y=${HEIGHT - EDGE.bottom + 15} text-anchor="middle">${percent(share)}</text>`)}
    <text x=${(WIDTH + EDGE.left) / 2} y=${HEIGHT - 4} text-anchor="middle">labelled answers that are given</text>
    <text x="10" y=${(HEIGHT - EDGE.bottom) / 2} text-anchor="middle" transform=${`rotate(-90 10 ${(HEIGHT - EDGE.bottom) / 2})`}>wrong</text>
    <path class="risk" d=${line} />
    ${points.length < 60 && points.map((point) => html`<circle key=${point.coverage} class="point" r="2.5" cx=${x(point.coverage)} cy=${y(point.error)} />`)}
    ${accepted && html`<line class="certified" x1=${x(accepted.coverage)} x2=${x(accepted.coverage)} y1=${EDGE.top} y2=${HEIGHT - EDGE.bottom} />
      <text x=${x(accepted.coverage) + (accepted.coverage > 0.5 ? -5 : 5)} y=${EDGE.top + 10} text-anchor=${accepted.coverage > 0.5 ? "end" : "start"}>certificate</text>`}
    ${at && html`<line class="gate" x1=${x(at.coverage)} x2=${x(at.coverage)} y1=${EDGE.top} y2=${HEIGHT - EDGE.bottom} />
      <circle class="gate" r="5" cx=${x(at.coverage)} cy=${y(at.error)} />`}
  </svg>`;
}
