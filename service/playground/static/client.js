// A client of ABMLL Serve for browsers and Node: one file, no dependencies. docs/javascript.md
//
//   const client = new Client("http://localhost:8000");
//   const { answers } = await client.decide({ input: "I was charged twice.", questions });
//
// Bodies and answers are those of the HTTP interface, without other names or defaults.

/** An answer that is not 2xx. `param` is the path of the wrong field, where the server names one. */
export class ServerError extends Error {
  constructor(status, error, retryAfter) {
    super(error.message ?? `the server answered with the status ${status}`);
    Object.assign(this, { name: "ServerError", status, code: error.code, param: error.param, retryAfter });
  }
}

export class Client {
  /** `key` is sent as a bearer token, for gateways that want one. */
  constructor(url, { key = "", retries = 3, fetch = globalThis.fetch.bind(globalThis) } = {}) {
    Object.assign(this, { url: String(url).replace(/\/+$/, ""), key, retries, fetch });
  }

  limits = (options) => this.send("GET", "/v1/limits", undefined, options);
  models = (options) => this.send("GET", "/v1/models", undefined, options);
  adapt = (body, options) => this.send("POST", "/v1/adapters", body, options);
  begin = (body, options) => this.send("POST", "/v1/adapters?wait_ms=0", body, options);
  cancel = (id, options) => this.send("POST", `/v1/adapters/${segment(id)}/cancel`, undefined, options);
  adapter = (id, options) => this.send("GET", `/v1/adapters/${segment(id)}`, undefined, options);
  predict = (body, options) => this.send("POST", "/v1/predict", body, options);
  diagnose = (id, body, options) => this.send("POST", `/v1/adapters/${segment(id)}/diagnose`, body, options);
  calibrate = (id, body, options) => this.send("POST", `/v1/adapters/${segment(id)}/calibrate`, body, options);
  calibration = (id, options) => this.send("GET", `/v1/adapters/${segment(id)}/calibration`, undefined, options);
  feedback = (id, body, options) => this.send("POST", `/v1/adapters/${segment(id)}/feedback`, body, options);
  name = (name, options) => this.send("GET", `/v1/names/${segment(name)}`, undefined, options);
  putName = (name, body, options) => this.send("PUT", `/v1/names/${segment(name)}`, body, options);

  /** Answer typed questions about `body.input`. Without `body.model`, the base model answers. */
  async decide(body, options) {
    const model = body.model ?? (this.base ??= (await this.models(options)).data[0].id);
    return this.send("POST", "/v1/decisions", { ...body, model }, options);
  }

  /** Yield `{index, decision}` or `{index, error}` for each input, in the order of arrival. */
  async *decideAll(inputs, body, { atOnce = 4, ...options } = {}) {
    const running = new Map();
    let next = 0;
    const begin = (index) =>
      this.decide({ ...body, input: inputs[index] }, options).then(
        (decision) => ({ index, decision }),
        (error) => ({ index, error }),
      );
    while (next < inputs.length || running.size) {
      options.signal?.throwIfAborted();
      for (; running.size < atOnce && next < inputs.length; next += 1) running.set(next, begin(next));
      const done = await Promise.race(running.values());
      running.delete(done.index);
      yield done;
    }
  }

  /** Yield `{event, data}` of a streamed prediction. Throws `ServerError` for an `error` event. */
  stream = (body, options) => this.events("POST", "/v1/predict", { ...body, stream: true }, options);
  /** Yield `{event, data}` of an adaptation that `begin` began: how far it is, to its end. */
  follow = (id, options) => this.events("GET", `/v1/adapters/${segment(id)}/events`, undefined, options);

  async *events(method, path, body, { signal } = {}) {
    const response = await this.fetchOnce(method, path, body, signal);
    if (!response.ok) throw await errorOf(response);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const events = (rest + part.value).split("\n\n");
      rest = events.pop();
      for (const text of events) {
        const event = text.match(/^event: (.*)$/m)?.[1];
        if (!event) continue; // a comment, which holds the connection open
        const data = JSON.parse(text.match(/^data: (.*)$/m)[1]);
        if (event === "error") throw new ServerError(200, data.error);
        yield { event, data };
      }
    }
  }

  /** Send a request; again where the server is busy (429) or not ready (503), after its Retry-After. */
  async send(method, path, body, { signal } = {}) {
    for (let tries = 0; ; tries += 1) {
      const response = await this.fetchOnce(method, path, body, signal);
      if (response.ok) return response.json();
      const error = await errorOf(response);
      if (tries >= this.retries || ![429, 503].includes(error.status)) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000 * (error.retryAfter ?? 2 ** tries)));
      signal?.throwIfAborted();
    }
  }

  fetchOnce(method, path, body, signal) {
    const headers = { ...(body && { "content-type": "application/json" }), ...(this.key && { authorization: `Bearer ${this.key}` }) };
    return this.fetch(this.url + path, { method, headers, signal, body: body && JSON.stringify(body) });
  }
}

const segment = encodeURIComponent;

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const wait = Number.parseInt(response.headers.get("retry-after") ?? "", 10);
  return new ServerError(response.status, body.error ?? {}, Number.isNaN(wait) ? undefined : wait);
}
