// A table that draws only the rows in sight.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./htm-preact.js";

const EXTRA = 6;

/**
 * `columns` are `{key, title, min, grow, cell(row, index)}`: the least width in rem, and the share of
 * what is left. `reveal` is the index of a row to scroll to. With `onSelect`, the keys up and down
 * choose a row.
 */
export function Grid({ label, rows, columns, rowHeight = 44, height = 360, reveal, selected, onSelect, rowClass = () => "" }) {
  const box = useRef(null);
  const [top, setTop] = useState(0);
  const tracks = { gridTemplateColumns: columns.map(({ min, grow }) => (grow ? `minmax(${min}rem, ${grow}fr)` : `${min}rem`)).join(" ") };
  const width = { minWidth: `${columns.reduce((sum, { min }) => sum + min, 0)}rem` };
  const first = Math.max(0, Math.floor(top / rowHeight) - EXTRA);
  const shown = rows.slice(first, Math.ceil((top + height) / rowHeight) + EXTRA);

  useLayoutEffect(() => {
    if (reveal == null || reveal < 0 || !box.current) return;
    const at = reveal * rowHeight;
    const { scrollTop, clientHeight } = box.current;
    if (at < scrollTop || at + 2 * rowHeight > scrollTop + clientHeight) box.current.scrollTop = Math.max(0, at - clientHeight / 2);
  }, [reveal]);
  useEffect(() => {
    if (box.current && box.current.scrollTop !== top) setTop(box.current.scrollTop);
  }, [rows.length]);

  const onKey = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
    if (!onSelect || !step || event.target !== box.current || !rows.length) return;
    event.preventDefault();
    const at = rows.findIndex((row) => row.id === selected);
    onSelect(rows[Math.min(rows.length - 1, Math.max(0, at < 0 ? 0 : at + step))].id);
  };

  return html`<div class="grid" role="table" aria-label=${label} aria-rowcount=${rows.length + 1} tabindex="0" ref=${box}
      style=${{ maxHeight: `${height}px` }} onScroll=${(event) => setTop(event.currentTarget.scrollTop)} onKeyDown=${onKey}>
    <div role="rowgroup" class="grid-head" style=${width}>
      <div role="row" class="grid-row" aria-rowindex="1" style=${tracks}>
        ${columns.map((column) => html`<div role="columnheader" key=${column.key} title=${column.hint}>${column.title}</div>`)}
      </div>
    </div>
    <div role="rowgroup" class="grid-body" style=${{ ...width, height: `${rows.length * rowHeight}px` }}>
      ${shown.map((row, i) => html`<div role="row" key=${row.id} aria-rowindex=${first + i + 2}
          class=${`grid-row ${row.id === selected ? "selected" : ""} ${rowClass(row)}`}
          style=${{ ...tracks, height: `${rowHeight}px`, top: `${(first + i) * rowHeight}px` }}
          onClick=${onSelect && (() => onSelect(row.id))}>
        ${columns.map((column) => html`<div role="cell" key=${column.key}>${column.cell(row, first + i)}</div>`)}
      </div>`)}
    </div>
  </div>`;
}
