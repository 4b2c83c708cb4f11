// Tables as people have them: comma, semicolon or tab, quotes, JSON Lines; and CSV to save.

/** Return `{header, rows}` of a text; cells are texts, or any JSON value of a JSON file. Throws Error. */
export function readTable(text) {
  const body = text.replace(/^\uFEFF/, "");
  if (!body.trim()) throw new Error("There is nothing in it.");
  return /^\s*[{[]/.test(body) ? readJson(body) : { header: null, rows: readDelimited(body) };
}

/** Return the rows of a delimited text, each a list of cells. Throws Error with the line. */
export function readDelimited(text, separator = separatorOf(text)) {
  const rows = [];
  let row = [];
  let at = 0;
  const ends = (i) => i >= text.length || text[i] === separator || text[i] === "\n" || text[i] === "\r";
  while (at <= text.length) {
    let cell;
    const quoted = text[at] === '"' ? closingQuote(text, at) : -1;
    if (quoted > 0 && ends(quoted + 1)) {
      cell = text.slice(at + 1, quoted).replaceAll('""', '"');
      at = quoted + 1;
    } else if (text[at] === '"' && separator !== "\t") {
      const line = text.slice(0, at).split(/\r\n|\r|\n/).length;
      throw new Error(`Line ${line} has a quote without its partner. Write "" for a quote inside quotes.`);
    } else {
      const from = at;
      while (!ends(at)) at += 1;
      cell = text.slice(from, at);
    }
    row.push(cell);
    if (text[at] === separator && at < text.length) {
      at += 1;
      continue;
    }
    if (row.some((given) => given.trim())) rows.push(row);
    row = [];
    at += text[at] === "\r" && text[at + 1] === "\n" ? 2 : 1;
  }
  return rows;
}

function closingQuote(text, open) {
  for (let at = text.indexOf('"', open + 1); at > 0; at = text.indexOf('"', at + 2)) if (text[at + 1] !== '"') return at;
  return -1;
}

/** Return the separator that the first line has most of; a comma where it has none. */
export function separatorOf(text) {
  const line = text.split(/\r\n|\r|\n/, 1)[0].replace(/"[^"]*"/g, "");
  if (line.includes("\t")) return "\t";
  return line.split(";").length > line.split(",").length ? ";" : ",";
}

function readJson(text) {
  let objects;
  if (text.trimStart()[0] === "[") objects = parse(text, "The file");
  else objects = text.split(/\r\n|\r|\n/).flatMap((line, index) => (line.trim() ? [parse(line, `Line ${index + 1}`)] : []));
  if (objects.some((object) => typeof object !== "object" || !object || Array.isArray(object)))
    throw new Error("Each row of a JSON file is an object, such as {\"input\": \"...\"}.");
  const flat = objects.map(({ answers, ...rest }) => ({ ...rest, ...answers }));
  const header = [...new Set(flat.flatMap(Object.keys))];
  return { header, rows: flat.map((object) => header.map((key) => object[key])) };
}

function parse(text, place) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`${place} is not JSON: ${error.message}`);
  }
}

/** Return the text of a file: UTF-8, or UTF-16 with its mark. Throws Error. */
export async function readFile(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const mark = bytes[0] * 256 + bytes[1];
  const encoding = mark === 0xfffe ? "utf-16le" : mark === 0xfeff ? "utf-16be" : "utf-8";
  try {
    return new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch {
    throw new Error(`“${file.name}” is not UTF-8. Save it as CSV UTF-8 in the spreadsheet, or as JSON Lines.`);
  }
}

/** Return rows of cells as CSV, with CRLF as spreadsheets want it. */
export const writeCsv = (rows) =>
  rows.map((row) => row.map((cell) => {
    const text = String(cell ?? "");
    return /[",;\t\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
  }).join(",")).join("\r\n") + "\r\n";

/** Offer a text as a file to save. */
export function save(name, text, type = "text/csv") {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(["\uFEFF", text], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
