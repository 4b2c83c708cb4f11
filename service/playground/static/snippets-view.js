// The panel that shows a request in a language, to copy.
import { html, useState } from "./htm-preact.js";
import { client, home } from "./session.js";
import { bodyOf, LANGUAGES, REQUESTS, snippet } from "./snippets.js";

export function Snippets({ state }) {
  const [language, setLanguage] = useState("curl");
  const [request, setRequest] = useState("ask");
  const [copied, setCopied] = useState("");
  const [open, setOpen] = useState(false);
  const text = open ? snippet(language, bodyOf(request, state), home, !!client.key) : "";
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
      setCopied("Copied.");
    } catch {
      setCopied("The browser does not allow it here: select the text, and copy it.");
    }
    setTimeout(() => setCopied(""), 4000);
  };
  return html`<section aria-labelledby="code-title">
    <details onToggle=${(e) => setOpen(e.currentTarget.open)}>
      <summary><h2 id="code-title">The same in code</h2></summary>
      <div class="line wrap">
        <label>Request <select value=${request} onChange=${(e) => setRequest(e.currentTarget.value)}>
          ${Object.entries(REQUESTS).map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></label>
        <label>Language <select value=${language} onChange=${(e) => setLanguage(e.currentTarget.value)}>
          ${Object.entries(LANGUAGES).map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></label>
        <span class="gap"></span>
        <span role="status">${copied}</span>
        <button type="button" onClick=${copy}>Copy</button>
      </div>
      <pre tabindex="0" role="region" aria-label="Code"><code>${text}</code></pre>
    </details>
  </section>`;
}
