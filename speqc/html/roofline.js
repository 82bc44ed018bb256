const PLOT = { width: 1000, height: 520, left: 76, right: 24, top: 20, bottom: 52 };
const SHAPES = { draft: 'circle', verify: 'rect', prompt: 'path' };

async function showRoofline(content, summary) {
  const points = [];
  for (const [place, step] of summary.steps.entries()) {
    points.push(...rooflinePoints(step, (await unpack(`step-${place}`)).ops, summary.target));
  }
  const roofs = roofsOf(summary);
  content.append(legend(['draft', 'array, draft mode'], ['array', 'array, full mode'], ['vector', 'vector unit']),
    element('p', {}, 'Circles: draft step. Squares: verify step. Triangles: prompt chunk. Points of equal shapes lie on one another.'),
    rooflinePlot(points, roofs, summary.target), element('h3', {}, 'Roofs'),
    table('Roofs', [['roof'], ['rate', 1], ['reached from', 1]], roofs.map((roof) => [
      roof.name, scaled(roof.rate, 'OP/s'), `${(roof.rate / summary.target.dram_bytes_per_second).toPrecision(3)} OP/B`])));
}

/** Roofs: two operations for each multiply-add. */
function roofsOf({ target, steps }) {
  const full = 2 * target.array_rows * target.array_columns * target.clock_hz;
  const draft = full * target.draft_lanes;
  const part = (rows) => Math.min(1, rows / target.array_rows);
  const [drafting, verifying] = steps;
  return [
    { name: 'array, draft mode', rate: draft, colour: 'draft' },
    { name: 'array, full mode', rate: full, colour: 'array' },
    { name: `array, draft mode, ${counted(drafting.rows, 'row')} of activations`, rate: draft * part(drafting.rows), colour: 'draft', dashed: true },
    { name: `array, full mode, ${counted(verifying.rows, 'row')} of activations`, rate: full * part(verifying.rows), colour: 'array', dashed: true },
    { name: 'vector unit', rate: 2 * target.vector_lanes * target.clock_hz, colour: 'vector' },
  ];
}

/** Operations of one step that compute, those that would lie on one another once. */
function rooflinePoints(step, ops, target) {
  const found = new Map();
  for (let i = 0; i < ops.name.length; i++) {
    const cycles = Math.max(ops.unit_cycles[i], ops.dram_cycles[i]);
    if (!ops.operations[i] || !ops.dram_bytes[i] || !cycles) continue;
    const intensity = ops.operations[i] / ops.dram_bytes[i];
    const rate = ops.operations[i] / cycles * target.clock_hz;
    const hue = ops.unit[i] === 'vector' ? 'vector' : ops.mode[i] === 'draft' ? 'draft' : 'array';
    const key = [intensity.toPrecision(6), rate.toPrecision(6), hue].join();
    const point = found.get(key) || { step: step.name, intensity, rate, hue, bound: ops.bound[i], names: [] };
    point.names.push(ops.name[i]);
    found.set(key, point);
  }
  return [...found.values()];
}

function rooflinePlot(points, roofs, target) {
  const bandwidth = target.dram_bytes_per_second;
  const intensities = [...points.map((p) => p.intensity), ...roofs.map((r) => r.rate / bandwidth)];
  const rates = [...points.map((p) => p.rate), ...roofs.map((r) => r.rate)];
  const x = logScale(intensities, PLOT.left, PLOT.width - PLOT.right);
  const y = logScale(rates, PLOT.height - PLOT.bottom, PLOT.top);
  const plot = drawn('svg', { viewBox: `0 0 ${PLOT.width} ${PLOT.height}`, role: 'img', id: 'roofline-plot',
    'aria-label': 'Roofline: rate of each operation by its arithmetic intensity. The part Operations has the cycles and bytes as a table.' });
  drawGrid(plot, x, y);
  const ridge = Math.max(...roofs.map((roof) => roof.rate)) / bandwidth;
  const low = 10 ** x.low;
  plot.append(drawn('line', { x1: x(low), y1: y(low * bandwidth), x2: x(ridge), y2: y(ridge * bandwidth),
    stroke: 'var(--dram)', 'stroke-width': 2 }));
  const middle = Math.sqrt(ridge * roofs[1].rate / bandwidth);
  plot.append(drawn('text', { x: x(middle) - 12, y: y(middle * bandwidth) - 6, 'text-anchor': 'end', class: 'label' },
    `DRAM: ${scaled(bandwidth, 'B/s')}`));
  for (const roof of roofs) {
    const from = roof.rate / bandwidth;
    plot.append(drawn('line', { x1: x(from), y1: y(roof.rate), x2: PLOT.width - PLOT.right, y2: y(roof.rate),
      stroke: `var(--${roof.colour})`, 'stroke-width': 2, 'stroke-dasharray': roof.dashed ? '6 5' : null }));
    plot.append(drawn('text', { x: PLOT.width - PLOT.right - 4, y: y(roof.rate) - 6, 'text-anchor': 'end', class: 'label' },
      `${roof.name}: ${scaled(roof.rate, 'OP/s')}`));
  }
  for (const point of points) plot.append(mark(point, x(point.intensity), y(point.rate)));
  return plot;
}

function mark(point, x, y) {
  const shapes = {
    circle: { cx: x, cy: y, r: 5.5 },
    rect: { x: x - 5, y: y - 5, width: 10, height: 10 },
    path: { d: `M${x} ${y - 6.5}l6 11h-12z` },
  };
  const names = point.names.length > 4 ? `${point.names.slice(0, 4).join(', ')} and ${point.names.length - 4} more` : point.names.join(', ');
  const text = `${point.step}: ${names}\n${point.intensity.toPrecision(3)} OP/B, ${scaled(point.rate, 'OP/s')}; bound: ${UNIT_NAMES[point.bound]}`;
  const node = drawn(SHAPES[point.step], { ...shapes[SHAPES[point.step]], fill: `var(--${point.hue})`, 'fill-opacity': 0.6,
    stroke: `var(--${point.hue})`, class: 'point' });
  node.addEventListener('pointermove', (event) => showTip(event, text));
  node.addEventListener('pointerleave', (event) => showTip(event, ''));
  return node;
}

/** Places of values on a logarithmic axis, with some room at both ends. */
function logScale(values, from, to) {
  const logs = values.filter((value) => value > 0).map(Math.log10);
  const low = Math.min(...logs) - 0.25, high = Math.max(...logs) + 0.35;
  const scale = (value) => from + (Math.log10(value) - low) / (high - low) * (to - from);
  return Object.assign(scale, { low, high });
}

function drawGrid(plot, x, y) {
  const { width, height, left, right, top, bottom } = PLOT;
  const line = (attributes) => plot.append(drawn('line', { ...attributes, stroke: 'var(--line)' }));
  const exponents = (axis) => Array.from({ length: Math.floor(axis.high) - Math.ceil(axis.low) + 1 }, (_, i) => Math.ceil(axis.low) + i);
  for (const exponent of exponents(x)) {
    line({ x1: x(10 ** exponent), x2: x(10 ** exponent), y1: top, y2: height - bottom });
    plot.append(drawn('text', { x: x(10 ** exponent), y: height - bottom + 18, 'text-anchor': 'middle' }, String(Number((10 ** exponent).toPrecision(1)))));
  }
  for (const exponent of exponents(y)) {
    line({ x1: left, x2: width - right, y1: y(10 ** exponent), y2: y(10 ** exponent) });
    plot.append(drawn('text', { x: left - 8, y: y(10 ** exponent) + 4, 'text-anchor': 'end' }, scaled(10 ** exponent, '')));
  }
  plot.append(drawn('text', { x: (left + width - right) / 2, y: height - 12, 'text-anchor': 'middle' },
    'arithmetic intensity: operations (OP) per byte to or from DRAM'));
  plot.append(drawn('text', { x: 16, y: (top + height - bottom) / 2, 'text-anchor': 'middle',
    transform: `rotate(-90 16 ${(top + height - bottom) / 2})` }, 'operations per second'));
}
