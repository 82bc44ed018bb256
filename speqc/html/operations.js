const OP_PARTS = ['load', 'ideal', 'stall', 'drain'];
const OPERATION_COLUMNS = [
  ['place', '#', 1], ['name', 'operation', 0], ['node', 'node', 0], ['unit', 'unit', 0], ['bound', 'bound', 0],
  ['start', 'start', 1], ['cycles', 'cycles', 1], ...OP_PARTS.map((part) => [part, part, 1]),
  ['dram_cycles', 'DRAM busy', 1], ['dram_bytes', 'bytes', 1], ['nanojoules', 'nJ', 1],
];
const FIRST_ROWS = 150;

async function showOperations(content, summary) {
  const host = element('div');
  const choose = async (place) => host.replaceChildren(...operationTables(summary.steps[place], await unpack(`step-${place}`)));
  content.append(choice('Step', summary.steps.map((step, place) => [place, STEP_NAMES[step.name]]), 0, choose), host);
  await choose(0);
}

/** What one step's operations take: by kind, then one by one. */
function operationTables(step, { ops }) {
  const rows = ops.name.map((_, i) => ({
    place: i + 1, name: ops.name[i], node: ops.node[i], kind: ops.kind[i], unit: SHORT_NAMES[ops.unit[i]],
    bound: SHORT_NAMES[ops.bound[i]], boundKey: ops.bound[i], start: ops.start[i], span: ops.end[i] - ops.start[i],
    unit_cycles: ops.unit_cycles[i], dram_cycles: ops.dram_cycles[i], dram_bytes: ops.dram_bytes[i],
    ...Object.fromEntries(OP_PARTS.map((part) => [part, ops[part][i]])),
    cycles: OP_PARTS.reduce((sum, part) => sum + ops[part][i], 0), nanojoules: Math.round(ops.energy_joules[i] * 1e9),
  }));
  return [element('p', {}, `${stepTitle(step)}; ${counted(step.cycles, 'cycle')}. Each cycle belongs to the first operation that is not ready by then: loading (until it works on its first block), ideal (its unit works), stalled (its unit waits between blocks) or draining (until its result is ready). These add up to the step. Units work side by side, so that the cycles for which they are busy do not.`),
    element('h3', {}, 'By kind'), kindTable(rows, step), element('h3', {}, 'One by one'), ...sortableTable(rows, step)];
}

function kindTable(rows, step) {
  const kinds = new Map();
  for (const row of rows) {
    const sum = kinds.get(row.kind) || { count: 0, unit_cycles: 0, dram_cycles: 0, dram_bytes: 0, nanojoules: 0, cycles: 0, load: 0, ideal: 0, stall: 0, drain: 0 };
    for (const key of Object.keys(sum)) sum[key] += key === 'count' ? 1 : row[key];
    kinds.set(row.kind, sum);
  }
  const all = Math.max(1, step.cycles);
  return table('Operations by kind', [['kind'], ['operations', 1], ['cycles', 1], ['of the step', 1],
    ...OP_PARTS.map((part) => [part, 1]), ['unit busy', 1], ['DRAM busy', 1], ['bytes', 1], ['energy', 1]],
  [...kinds].sort((a, b) => b[1].cycles - a[1].cycles).map(([kind, sum]) => [
    kind, count(sum.count), count(sum.cycles), percent(sum.cycles / all), ...OP_PARTS.map((part) => count(sum[part])),
    count(sum.unit_cycles), count(sum.dram_cycles), bytes(sum.dram_bytes), `${(sum.nanojoules / 1e6).toPrecision(4)} mJ`]));
}

function sortableTable(rows, step) {
  const state = { key: 'place', down: false, text: '', bound: '', shown: FIRST_ROWS };
  const body = element('tbody');
  const status = element('span', { class: 'dim', role: 'status' });
  const more = element('button', { click: () => { state.shown = Infinity; refresh(); } }, 'Show all');
  const heads = OPERATION_COLUMNS.map(([key, label, number]) => element('th', { scope: 'col', class: number ? 'number' : '' },
    element('button', { click: () => {
      state.down = state.key === key ? !state.down : Boolean(number) && key !== 'place' && key !== 'start';
      state.key = key;
      refresh();
    } }, label)));
  const refresh = () => {
    for (const [place, [key]] of OPERATION_COLUMNS.entries()) {
      heads[place].setAttribute('aria-sort', key !== state.key ? 'none' : state.down ? 'descending' : 'ascending');
    }
    const wanted = state.text.toLowerCase();
    const found = rows.filter((row) => (!state.bound || row.boundKey === state.bound)
      && `${row.name} ${row.node}`.toLowerCase().includes(wanted));
    const order = state.down ? -1 : 1;
    found.sort((a, b) => order * (a[state.key] < b[state.key] ? -1 : a[state.key] > b[state.key] ? 1 : a.place - b.place));
    body.replaceChildren(...found.slice(0, state.shown).map((row) => operationRow(row, step)));
    status.textContent = `${count(Math.min(found.length, state.shown))} of ${count(found.length)} shown`;
    more.hidden = found.length <= state.shown;
  };
  const filter = element('input', { type: 'search', placeholder: 'name or node', 'aria-label': 'Show operations whose name or node contains' });
  filter.addEventListener('input', () => { state.text = filter.value; refresh(); });
  const bound = element('select', { 'aria-label': 'Show operations bound by' }, element('option', { value: '' }, 'any bound'),
    ...Object.entries(UNIT_NAMES).map(([key, name]) => element('option', { value: key }, `bound: ${name}`)));
  bound.addEventListener('change', () => { state.bound = bound.value; refresh(); });
  refresh();
  return [element('div', { class: 'controls' }, filter, bound, status, more),
    element('div', { class: 'scroll' }, element('table', { id: 'operation-table' }, element('caption', { class: 'unseen' }, 'Operations of the step'),
      element('thead', {}, element('tr', {}, ...heads)), body))];
}

function operationRow(row, step) {
  const zoom = async () => {
    await show('timeline');
    const margin = Math.max(20, row.span / 2);
    timelines.get(step.name).view(row.start - margin, row.start + row.span + margin);
    timelines.get(step.name).canvas.scrollIntoView({ block: 'center' });
  };
  return element('tr', {}, ...OPERATION_COLUMNS.map(([key, , number]) => {
    if (key === 'name') {
      return element('td', { class: 'name' }, element('button', { class: 'link', title: 'Show in the timeline', click: zoom }, row.name));
    }
    if (key === 'bound') return element('td', {}, bar(0.13, row.boundKey), row.bound);
    if (key === 'node') return element('td', { class: 'name', title: row.node }, row.node);
    return element('td', { class: number ? 'number' : '' }, number ? count(row[key]) : row[key]);
  }));
}
