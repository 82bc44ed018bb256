const LANES = ['dram', 'array', 'vector'];
const GUTTER = 132, AXIS = 24, LANE = 56, ROW = 20;
const SLICE_COLOURS = ['dram', 'array', 'draft', 'vector'];
const timelines = new Map();

async function showTimelines(content, summary) {
  content.append(legend(['dram', 'transfer'], ['array', 'array, full mode'], ['draft', 'array, draft mode'],
    ['vector', 'vector unit']));
  for (const [place, step] of summary.steps.entries()) {
    const data = await unpack(`step-${place}`);
    const canvas = element('canvas', { class: 'timeline', tabindex: '0', role: 'img',
      'aria-label': `Timeline of the ${step.name} step, ${count(step.cycles)} cycles. The part Operations has the same as a table.` });
    const timeline = new Timeline(canvas, step, data, summary.target);
    timelines.set(step.name, timeline);
    const button = (text, label, act) => element('button', { 'aria-label': label, click: act }, text);
    content.append(element('h3', {}, stepTitle(step)), canvas, element('div', { class: 'controls' },
      button('+', 'Zoom in', () => timeline.zoom(0.5)), button('\u2212', 'Zoom out', () => timeline.zoom(2)),
      button('\u2190', 'Earlier', () => timeline.move(-0.3)), button('\u2192', 'Later', () => timeline.move(0.3)),
      button('All', 'Show the whole step', () => timeline.view(0, step.cycles)),
      element('span', { class: 'dim' }, `${count(step.cycles)} cycles, ${seconds(step.seconds)}, ${bytes(step.bytes)}`)));
    timeline.draw();
  }
}

/** One step on a canvas: for each unit its operations above, and what holds it below. */
class Timeline {
  constructor(canvas, step, data, target) {
    Object.assign(this, { canvas, step, data, target, from: 0, to: Math.max(1, step.cycles) });
    this.spans = Object.fromEntries(LANES.map((unit) => [unit, spansOf(data.slices[unit])]));
    canvas.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
    canvas.addEventListener('dblclick', (event) => this.zoom(0.4, this.cycle(event.offsetX)));
    canvas.addEventListener('pointerdown', (event) => this.grab(event));
    canvas.addEventListener('pointermove', (event) => this.hover(event));
    canvas.addEventListener('pointerleave', (event) => showTip(event, ''));
    canvas.addEventListener('keydown', (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
    onThemeChange(() => this.draw());
  }

  get width() { return Math.max(50, this.canvas.clientWidth - GUTTER - 8); }

  cycle(x) { return this.from + (x - GUTTER) / this.width * (this.to - this.from); }

  place(cycle) { return GUTTER + (cycle - this.from) / (this.to - this.from) * this.width; }

  /** Show cycles from one to another, kept within the step. */
  view(from, to) {
    const length = Math.min(Math.max(to - from, 20), Math.max(1, this.step.cycles));
    this.from = Math.min(Math.max(0, from), Math.max(0, this.step.cycles - length));
    this.to = this.from + length;
    this.draw();
  }

  zoom(factor, centre = (this.from + this.to) / 2) {
    this.view(centre - (centre - this.from) * factor, centre + (this.to - centre) * factor);
  }

  move(share) {
    const length = this.to - this.from;
    this.view(this.from + share * length, this.to + share * length);
  }

  key(event) {
    const acts = {
      '+': () => this.zoom(0.5), '=': () => this.zoom(0.5), '-': () => this.zoom(2), 0: () => this.view(0, this.step.cycles),
      ArrowLeft: () => this.move(-0.2), ArrowRight: () => this.move(0.2),
    };
    if (!(event.key in acts) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    acts[event.key]();
  }

  wheel(event) {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      this.zoom(Math.exp(event.deltaY / 300), this.cycle(event.offsetX));
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      this.move(event.deltaX / this.width);
    }
  }

  grab(event) {
    const { from, to } = this;
    const drag = (moved) => {
      const cycles = (event.clientX - moved.clientX) / this.width * (to - from);
      this.view(from + cycles, to + cycles);
    };
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.addEventListener('pointermove', drag);
    this.canvas.addEventListener('pointerup', () => this.canvas.removeEventListener('pointermove', drag), { once: true });
  }

  hover(event) {
    const lane = Math.floor((event.offsetY - AXIS) / LANE);
    const cycle = this.cycle(event.offsetX);
    if (!(lane in LANES) || event.offsetX < GUTTER) return showTip(event, '');
    const unit = LANES[lane];
    const upper = event.offsetY - AXIS - lane * LANE < 6 + ROW;
    const found = upper ? findSpan(this.spans[unit], cycle) : findSlice(this.data.slices[unit], cycle);
    return showTip(event, found ? this.describe(unit, found) : '');
  }

  describe(unit, { op, start, end, block }) {
    const { ops } = this.data;
    const time = (cycles) => seconds(cycles / this.target.clock_hz);
    const what = block >= 0 ? `${ops.name[op]}, block ${block + 1}` : ops.name[op];
    return [what, ops.node[op] && `node ${ops.node[op]}`,
      `cycles ${count(start)} to ${count(end)} (${count(end - start)}, ${time(end - start)})`,
      `bound: ${UNIT_NAMES[ops.bound[op]]}; its unit ${count(ops.unit_cycles[op])} cycles, DRAM ${count(ops.dram_cycles[op])} cycles`,
      `${bytes(ops.dram_bytes[op])} to or from DRAM`].filter(Boolean).join('\n');
  }

  draw() {
    const { canvas } = this;
    if (!canvas.clientWidth) return;
    const ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = canvas.clientHeight * ratio;
    const context = canvas.getContext('2d');
    context.scale(ratio, ratio);
    context.font = '12px system-ui, sans-serif';
    this.colours = Object.fromEntries([...SLICE_COLOURS, 'text', 'dim', 'line', 'panel'].map((name) => [name, colour(name)]));
    this.drawAxis(context);
    for (const [lane, unit] of LANES.entries()) this.drawLane(context, unit, AXIS + lane * LANE);
  }

  drawAxis(context) {
    const step = niceStep((this.to - this.from) / this.width * 110 / this.target.clock_hz);
    const clock = this.target.clock_hz;
    context.textBaseline = 'middle';
    for (let tick = Math.ceil(this.from / clock / step); tick * step * clock <= this.to; tick++) {
      const x = this.place(tick * step * clock);
      context.fillStyle = this.colours.line;
      context.fillRect(x, AXIS - 4, 1, LANES.length * LANE + 4);
      context.fillStyle = this.colours.dim;
      context.fillText(tick ? axisTime(tick * step, step) : '0', x + 4, AXIS / 2);
    }
  }

  drawLane(context, unit, top) {
    const share = this.step.cycles ? this.step.busy[unit] / this.step.cycles : 0;
    context.fillStyle = this.colours.text;
    context.fillText(UNIT_NAMES[unit], 12, top + 18);
    context.fillStyle = this.colours.dim;
    context.fillText(`${percent(share)} busy`, 12, top + 36);
    context.fillStyle = this.colours.line;
    context.fillRect(0, top - 1, GUTTER + this.width + 8, 1);
    context.save();
    context.beginPath();
    context.rect(GUTTER, top, this.width, LANE);
    context.clip();
    this.drawSpans(context, unit, top + 5);
    this.drawSlices(context, unit, top + 7 + ROW);
    context.restore();
  }

  colourOf(unit, op) {
    return unit === 'array' && this.data.ops.mode[op] === 'draft' ? 'draft' : unit;
  }

  drawSpans(context, unit, top) {
    const { ops } = this.data;
    for (const { op, start, end } of this.spans[unit]) {
      if (end < this.from || start > this.to) continue;
      const x = this.place(start), width = this.place(end) - x;
      context.globalAlpha = 0.28;
      context.fillStyle = this.colours[this.colourOf(unit, op)];
      context.fillRect(x, top, Math.max(width - (width > 3 ? 1 : 0), 0.6), ROW);
      context.globalAlpha = 1;
      if (width < 44) continue;
      context.fillStyle = this.colours.text;
      const left = Math.max(x, GUTTER) + 4;
      context.save();
      context.beginPath();
      context.rect(x, top, width - 4, ROW);
      context.clip();
      context.fillText(`${ops.name[op]}${ops.node[op] && width > 150 ? ` \u00b7 ${ops.node[op]}` : ''}`, left, top + ROW / 2 + 1);
      context.restore();
    }
  }

  /** Wide slices one by one; narrow ones as how much of each pixel they cover. */
  drawSlices(context, unit, top) {
    const { start, cycles, op, block } = this.data.slices[unit];
    const cover = Object.fromEntries(SLICE_COLOURS.map((name) => [name, new Float64Array(Math.ceil(this.width) + 2)]));
    for (let i = 0; i < start.length; i++) {
      if (start[i] + cycles[i] < this.from || start[i] > this.to) continue;
      const x = this.place(start[i]), width = this.place(start[i] + cycles[i]) - x;
      const name = this.colourOf(unit, op[i]);
      if (width < 3) {
        const left = x - GUTTER, pixel = Math.floor(left);
        const first = Math.min(width, pixel + 1 - left);
        if (cover[name][pixel] !== undefined) cover[name][pixel] += first;
        for (let rest = width - first, next = pixel + 1; rest > 0; rest -= 1, next++) {
          if (cover[name][next] !== undefined) cover[name][next] += Math.min(rest, 1);
        }
        continue;
      }
      context.fillStyle = this.colours[name];
      context.globalAlpha = block[i] % 2 === 1 ? 0.72 : 1;
      context.fillRect(x, top, width - 0.8, ROW);
      const many = block[i] > 0 || (op[i + 1] === op[i] && block[i + 1] > 0);
      if (many && width > 26) {
        context.fillStyle = this.colours.panel;
        context.globalAlpha = 1;
        context.fillText(String(block[i] + 1), Math.max(x, GUTTER) + 4, top + ROW / 2 + 1);
      }
    }
    for (const name of SLICE_COLOURS) {
      context.fillStyle = this.colours[name];
      for (const [pixel, share] of cover[name].entries()) {
        if (share <= 0) continue;
        context.globalAlpha = Math.min(1, 0.12 + 0.88 * share);
        context.fillRect(GUTTER + pixel, top, 1, ROW);
      }
    }
    context.globalAlpha = 1;
  }
}

/** Operations on one unit, from the first slice to the last. */
function spansOf({ start, cycles, op }) {
  const spans = [];
  for (let i = 0; i < start.length; i++) {
    const last = spans[spans.length - 1];
    if (last && last.op === op[i]) last.end = start[i] + cycles[i];
    else spans.push({ op: op[i], start: start[i], end: start[i] + cycles[i], block: -1 });
  }
  return spans;
}

function findSpan(spans, cycle) {
  return spans.find(({ start, end }) => start <= cycle && cycle < end);
}

function findSlice({ start, cycles, op, block }, cycle) {
  let low = 0, high = start.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (start[middle] <= cycle) low = middle + 1;
    else high = middle;
  }
  const i = low - 1;
  if (i < 0 || cycle >= start[i] + cycles[i]) return null;
  return { op: op[i], start: start[i], end: start[i] + cycles[i], block: block[i] };
}

function niceStep(raw) {
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= raw);
}

/** A time on the axis in the unit that suits its largest value, with the digits that steps need. */
function axisTime(time, step) {
  const [factor, unit] = time < 1e-6 ? [1e9, 'ns'] : time < 1e-3 ? [1e6, '\u00b5s'] : [1e3, 'ms'];
  const digits = Math.max(0, -Math.floor(Math.log10(step * factor) + 1e-9));
  return `${(time * factor).toFixed(digits)}\u2009${unit}`;
}
