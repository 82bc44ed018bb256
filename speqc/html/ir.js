const CONTEXT_LINES = 3, CHUNK_ROWS = 300;
const TOKENS = /("(?:[^"\\]|\\.)*")|(loc\("[^"]*"(?:\("[^"]*"\))?\))|\b((?:onnx|speq|pe|func|builtin)\.\w+)|([%^][\w$.-]+)|([@#][\w$.-]+)|(![\w.]+<|tensor<[^>]*>)/g;
const TOKEN_CLASSES = [null, 'symbol', 'location', 'op', 'value', 'symbol', 'type'];

async function showPasses(content, summary) {
  const list = element('ol', { 'aria-label': 'Passes in order' });
  const panel = element('div');
  content.append(element('p', {}, summary.has_pipeline
    ? 'Each pass with the lines that it added and removed, and the IR behind it. Numbers at the ends of names of values are not compared: a new value moves all later ones.'
    : 'Only the program of the artifact is known. For the IR after each pass, compile with --dump-ir DIR and make this report with --ir DIR.'));
  content.append(element('div', { class: 'pipeline' }, list, panel));
  const choose = async (number) => {
    for (const button of list.querySelectorAll('button')) button.setAttribute('aria-current', String(button.dataset.number === String(number)));
    await showPass(panel, summary.passes, number);
  };
  let stage = null;
  for (const entry of summary.passes) {
    if (entry.stage !== stage) list.append(element('li', { class: 'stage' }, entry.stage === 'import' ? 'from the model' : `to the level ${entry.stage}`));
    stage = entry.stage;
    list.append(passItem(entry, choose));
  }
  const changed = summary.passes.filter((entry) => entry.changed);
  await choose(changed[Math.min(1, changed.length - 1)].number);
}

function passItem(entry, choose) {
  const label = `${String(entry.number).padStart(2, '0')} ${entry.name}`;
  if (!entry.changed) return element('li', { class: 'idle', title: 'changed nothing' }, label);
  const lines = entry.added || entry.removed
    ? [element('span', { class: 'plus' }, `+${entry.added}`), ' ', element('span', { class: 'minus' }, `\u2212${entry.removed}`)] : [];
  return element('li', {}, element('button', { 'data-number': entry.number, click: () => choose(entry.number) },
    element('span', {}, label), element('small', {}, ...lines)));
}

async function showPass(panel, passes, number) {
  const changed = passes.filter((entry) => entry.changed);
  const place = changed.findIndex((entry) => entry.number === number);
  const entry = changed[place], earlier = changed[place - 1];
  const { text, changes } = await unpack(`ir-${number}`);
  const after = text.split('\n').slice(0, -1);
  const before = earlier ? (await unpack(`ir-${earlier.number}`)).text.split('\n').slice(0, -1) : null;
  const code = element('div', { class: 'code', tabindex: '0', role: 'region', 'aria-label': `IR, pass ${entry.name}` });
  const views = {
    difference: () => renderRows(code, differenceRows(before, after, changes)),
    whole: () => renderRows(code, after.map((line, i) => ({ kind: '', number: i + 1, line }))),
  };
  const search = element('input', { type: 'search', placeholder: 'lines with \u2026', 'aria-label': 'Show lines of the IR that contain' });
  search.addEventListener('input', () => {
    const wanted = search.value;
    if (!wanted) return views[before ? 'difference' : 'whole']();
    return renderRows(code, after.flatMap((line, i) => line.includes(wanted) ? [{ kind: '', number: i + 1, line }] : []));
  });
  const facts = [
    ...(entry.seconds === null ? [] : [seconds(entry.seconds)]), `${count(after.length)} lines`,
    ...Object.entries(entry.dialects).map(([name, number]) => {
      const change = earlier ? number - (earlier.dialects[name] || 0) : 0;
      return `${name} ${count(number)}${change ? ` (${change > 0 ? '+' : '\u2212'}${count(Math.abs(change))})` : ''}`;
    }),
  ];
  const modes = before ? [['difference', 'Difference'], ['whole', 'Whole IR']] : [['whole', 'Whole IR']];
  const controls = choice('View', modes, modes[0][0], (name) => { search.value = ''; views[name](); });
  controls.append(search);
  panel.replaceChildren(element('h3', { style: 'margin-top: 0' }, `${String(entry.number).padStart(2, '0')} ${entry.name}`),
    element('p', { class: 'dim' }, facts.join(' \u00b7 ')), controls, code);
  views[modes[0][0]]();
}

/** Rows of a difference: changed lines with some around them, and gaps that can be opened. */
function differenceRows(before, after, changes) {
  const rows = [];
  let next = 0;
  const keep = (from, to) => { for (let j = from; j < to; j++) rows.push({ kind: '', number: j + 1, line: after[j] }); };
  const unchanged = (to, first, last) => {
    const from = next + (first ? 0 : CONTEXT_LINES), until = to - (last ? 0 : CONTEXT_LINES);
    if (until - from < 2) return keep(next, to);
    keep(next, from);
    rows.push({ kind: 'gap', lines: after.slice(from, until), from });
    return keep(until, to);
  };
  for (const [place, [i1, i2, j1, j2]] of changes.entries()) {
    unchanged(j1, place === 0, false);
    for (let i = i1; i < i2; i++) rows.push({ kind: 'remove', number: i + 1, line: before[i] });
    for (let j = j1; j < j2; j++) rows.push({ kind: 'add', number: j + 1, line: after[j] });
    next = j2;
  }
  unchanged(after.length, changes.length === 0, true);
  return rows;
}

/** Show rows a chunk at a time: the next when the end comes into view. */
function renderRows(code, rows) {
  const lines = element('div', { class: 'lines' });
  let shown = 0;
  const more = element('button', { click: () => append() });
  const append = () => {
    lines.append(...rows.slice(shown, shown + CHUNK_ROWS).map(rowOf));
    shown = Math.min(rows.length, shown + CHUNK_ROWS);
    more.hidden = shown >= rows.length;
    more.textContent = counted(rows.length - shown, 'more row');
  };
  code.replaceChildren(lines, more);
  code.scrollTo(0, 0);
  append();
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && shown < rows.length) append();
  }, { root: code, rootMargin: '400px' }).observe(more);
}

function rowOf(row) {
  if (row.kind !== 'gap') {
    const sign = { add: '+', remove: '\u2212', '': ' ' }[row.kind];
    return element('div', { class: `row ${row.kind}` }, element('span', {}, `${row.number} ${sign}`), ...highlighted(row.line));
  }
  const open = element('button', { click: () => {
    const part = row.lines.splice(0, CHUNK_ROWS);
    const opened = part.map((line, i) => rowOf({ kind: '', number: row.from + i + 1, line }));
    row.from += part.length;
    open.before(...opened);
    if (row.lines.length) open.textContent = gapText(row);
    else open.remove();
  } }, gapText(row));
  return open;
}

function gapText(row) {
  return `\u22ef ${count(row.lines.length)} unchanged lines`;
}

/** A line of MLIR with its names set off. */
function highlighted(line) {
  const parts = [];
  let end = 0;
  for (const match of line.matchAll(TOKENS)) {
    const group = match.findIndex((text, place) => place > 0 && text !== undefined);
    parts.push(line.slice(end, match.index), element('span', { class: TOKEN_CLASSES[group] }, match[0]));
    end = match.index + match[0].length;
  }
  parts.push(line.slice(end));
  return [element('code', {}, ...parts.filter((part) => part !== ''))];
}
