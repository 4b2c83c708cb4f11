// A client that asks questions under gates of two kinds.
import { Client } from "./client.js";

export class PartsClient extends Client {
  /** Ask each of `body.parts`, `{questions, gate}`, in a request of its own; return one decision with all answers. */
  async decide({ parts, ...body }, options) {
    if (!parts) return super.decide(body, options);
    const found = [];
    for (const { questions, gate } of parts) found.push(await super.decide({ ...body, questions, abmll: { ...body.abmll, gate } }, options));
    return { ...found[0], answers: found.flatMap(({ answers }) => answers) };
  }
}
