const EXPONENT_COUNT = 32;

async function showWeights(content) {
  const { weights, book } = await unpack('weights');
  const split = weights.filter((weight) => weight.codebook);
  const copied = weights.filter((weight) => weight.draft_format && !weight.codebook);
  const values = (list) => list.reduce((sum, weight) => sum + weight.shape[0] * weight.shape[1], 0);
  content.append(element('div', { class: 'tiles' },
    copied.length
      ? tile(`${copied.length} of ${weights.length}`, `weights have a copy in ${copied[0].draft_format}`)
      : tile(`${split.length} of ${weights.length}`, 'weights hold their draft in 4 bits'),
    tile(count(values(weights)), 'values'),
    exactTile(weights),
    tile(bytes(weights.reduce((sum, weight) => sum + weight.bytes, 0)), 'in the artifact')));
  if (weights.some((weight) => weight.exponents)) content.append(element('h3', {}, 'Exponents of all weights'),
    element('p', {}, 'How many values have each FP16 exponent field, on a logarithmic scale; field e stands for 2^(e\u00a0\u2212\u00a015), 0 for subnormal values and zero.'),
    histogram(sumOf(weights)));
  if (book) content.append(...bookViews(book));
  content.append(element('h3', {}, 'Weight by weight'), weightTable(weights));
}

/** What decoding the weights again showed; an artifact without weights has none to decode. */
function exactTile(weights) {
  if (weights.some((weight) => weight.exact === null)) return tile('no weights', 'compiled from shapes alone');
  return tile(weights.every((weight) => weight.exact) ? 'all exact' : 'NOT EXACT', 'decoded and compared with the model\u2019s digests');
}

function sumOf(weights) {
  const sum = new Array(EXPONENT_COUNT).fill(0);
  for (const weight of weights) (weight.exponents || []).forEach((number, field) => { sum[field] += number; });
  return sum;
}

const height = (number, most) => number ? Math.max(0.03, Math.log2(number + 1) / Math.log2(most + 1)) : 0;

function histogram(exponents) {
  const most = Math.max(1, ...exponents);
  const plot = drawn('svg', { viewBox: '0 0 800 190', role: 'img', id: 'exponent-plot', width: 800,
    'aria-label': `Exponents: ${exponents.map((number, field) => number ? `${field}: ${number}` : '').filter(Boolean).join(', ')}` });
  for (const [field, number] of exponents.entries()) {
    const tall = 140 * height(number, most), x = 12 + field * 24.5;
    const shape = drawn('rect', { x, y: 158 - tall, width: 19, height: tall, fill: 'var(--dram)', rx: 2 });
    const all = exponents.reduce((a, b) => a + b, 0);
    shape.addEventListener('pointermove', (event) => showTip(event, `exponent ${field}: ${count(number)} values, ${percent(number / all)}`));
    shape.addEventListener('pointerleave', (event) => showTip(event, ''));
    plot.append(shape, drawn('text', { x: x + 9.5, y: 176, 'text-anchor': 'middle' }, String(field)));
  }
  return plot;
}

function bookViews(book) {
  const host = element('div');
  const used = book.groups.map((number, place) => [place, number]).filter(([, number]) => number);
  const most = used.reduce((best, entry) => entry[1] > best[1] ? entry : best, [0, 0]);
  const views = [element('h3', {}, `Code book \u201c${book.name}\u201d`), element('p', {},
    `A weight's draft is sign \u00d7 level \u00d7 the scale of its group. A code owns up to four exponents, and the other 12 bits say which of them it is. ${
      book.scale_indexed ? `Sign, exponent, first and last three mantissa bits of the scale choose one of 1,024 tables; the model's groups use ${used.length} of them.` : 'One table serves all groups.'}`)];
  const draw = (place) => host.replaceChildren(bookTable(book, book.tables[place]));
  if (book.scale_indexed) {
    const select = element('select', { id: 'book-table' }, ...used.map(([place, number]) =>
      element('option', { value: place, selected: place === most[0] ? '' : null }, `${tableName(place)}: ${count(number)} groups`)));
    select.addEventListener('change', () => draw(Number(select.value)));
    views.push(element('div', { class: 'controls' }, element('label', { for: 'book-table' }, 'Table for scales'), select));
  }
  draw(most[0]);
  return [...views, host];
}

/** Which scales a table serves: by sign, exponent, first and last three mantissa bits of an FP16 pattern. */
function tableName(place) {
  const field = place >> 4 & 31, exponent = field - 15, half = place >> 3 & 1, from = half ? 1.5 : 1;
  const range = field ? `${from} \u00b7 2^${exponent} to ${from + 0.5} \u00b7 2^${exponent}` : `subnormal, half ${half}`;
  return `${range}, table ${place >> 9 << 3 | place & 7}`;
}

function bookTable(book, codes) {
  const cells = codes.map((exponents, code) => element('tr', {},
    element('th', { scope: 'row' }, code.toString(2).padStart(3, '0')),
    element('td', { class: 'number' }, String(Number(book.levels[code].toPrecision(5)))),
    ...Array.from({ length: EXPONENT_COUNT }, (_, field) => element('td', exponents.includes(field)
      ? { style: 'background: var(--dram); border-radius: 4px', title: `code ${code} owns exponent ${field}, slot ${exponents.indexOf(field)}` } : {},
    exponents.includes(field) ? element('span', { class: 'unseen' }, 'owned') : ''))));
  const heads = Array.from({ length: EXPONENT_COUNT }, (_, field) => element('th', { scope: 'col', style: 'padding: 4px 5px; min-width: 26px; text-align: center; font-weight: 400' }, String(field)));
  return element('div', { class: 'scroll' }, element('table', { id: 'code-book' },
    element('caption', { class: 'unseen' }, 'Exponents that each code owns'),
    element('thead', {}, element('tr', {}, element('th', { scope: 'col' }, 'code'), element('th', { scope: 'col', class: 'number' }, 'level'), ...heads)),
    element('tbody', {}, ...cells)));
}

function weightTable(weights) {
  return table('Weights', [['weight'], ['from'], ['K \u00d7 N', 1], ['bytes', 1], ['exponents'], ['draft format'], ['group', 1], ['shift', 1], ['draft SNR', 1], ['exact']],
    weights.map((weight) => [
      weight.name, named(weight.source), weight.shape.join(' \u00d7 '), bytes(weight.bytes), sparkline(weight.exponents),
      storedAs(weight), String(weight.group_size ?? ''), String(weight.shift ?? ''),
      weight.draft_snr_db === null ? '' : `${weight.draft_snr_db.toFixed(2)} dB`, weight.exact === null ? '' : weight.exact ? 'yes' : 'NO']));
}

/** How drafts find a weight: its code book, or the format of its copy; else why it is plain FP16. */
function storedAs(weight) {
  if (weight.codebook) return [weight.codebook, weight.levels].filter(Boolean).join(' ');
  return weight.draft_format ? `${weight.draft_format} copy` : `FP16: ${weight.kept}`;
}

/** A name that may be too long for its column. */
function named(text) {
  return element('span', { class: 'long', title: text }, text);
}

/** A small histogram of exponents 0 to 31. */
function sparkline(exponents) {
  if (!exponents) return '';
  const most = Math.max(1, ...exponents);
  const bars = exponents.map((number, field) => {
    const tall = 18 * height(number, most);
    return tall ? `M${field * 4} 20v${-tall}h3.2v${tall}z` : '';
  }).join('');
  const used = exponents.map((number, field) => number ? field : -1).filter((field) => field >= 0);
  return drawn('svg', { class: 'small', width: 128, height: 20, viewBox: '0 0 128 20', role: 'img',
    'aria-label': used.length ? `exponents ${used[0]} to ${used[used.length - 1]}` : 'no exponents' }, drawn('path', { d: bars, fill: 'var(--dram)' }));
}
