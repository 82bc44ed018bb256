'use strict';

const UNIT_NAMES = { dram: 'DRAM channel', array: 'PE array', vector: 'vector unit' };
const SHORT_NAMES = { dram: 'DRAM', array: 'array', vector: 'vector' };
const STEP_NAMES = { draft: 'Draft step', verify: 'Verify step', prompt: 'Prompt chunk' };
const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes and children; texts are never read as HTML. */
function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'click') node.addEventListener('click', value);
    else if (value !== null && value !== false) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const unpacked = new Map();

/** The data of a part of the page, which stand in it as gzip in base64. */
function unpack(part) {
  if (!unpacked.has(part)) unpacked.set(part, decompress(document.getElementById(`data-${part}`)));
  return unpacked.get(part);
}

async function decompress(node) {
  const bytes = Uint8Array.from(atob(node.textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return JSON.parse(await new Response(stream).text());
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function onThemeChange(redraw) {
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
}

const count = (number) => number.toLocaleString('en-US');
const nouns = (number, noun) => number === 1 ? noun : `${noun}s`;
const counted = (number, noun) => `${count(number)} ${nouns(number, noun)}`;
const percent = (share) => `${(100 * share).toFixed(1)}\u2009%`;

function scaled(number, unit, names = ['', 'k', 'M', 'G', 'T', 'P']) {
  let place = 0;
  for (; Math.abs(number) >= 999.5 && place < names.length - 1; place++) number /= 1000;
  return `${Number(number.toPrecision(3))}\u2009${names[place]}${unit}`;
}

const bytes = (number) => scaled(number, 'B');
const seconds = (number) => scaled(number * 1e9, 's', ['n', '\u00b5', 'm', '']);

function tile(value, label) {
  return element('div', { class: 'tile' }, element('b', {}, value), element('span', {}, label));
}

/** A table; columns have a label, and whether they hold numbers. */
function table(caption, columns, rows) {
  const head = columns.map(([label, number]) =>
    element('th', { scope: 'col', class: number ? 'number' : '' }, label));
  const body = rows.map((row) => element('tr', {}, ...row.map((cell, place) =>
    element('td', { class: columns[place][1] ? 'number' : '' }, cell))));
  return element('div', { class: 'scroll' }, element('table', {},
    element('caption', { class: 'unseen' }, caption),
    element('thead', {}, element('tr', {}, ...head)), element('tbody', {}, ...body)));
}

function legend(...entries) {
  return element('div', { class: 'legend' }, ...entries.map(([name, text]) =>
    element('span', {}, element('i', { style: `background: var(--${name})` }), text)));
}

function bar(share, name) {
  return element('span', { class: 'bar', style: `width: ${Math.round(54 * share)}px; background: var(--${name})` });
}

/** Buttons of which one is pressed. */
function choice(label, names, chosen, choose) {
  const buttons = names.map(([key, text]) => element('button', {
    'aria-pressed': String(key === chosen),
    click: () => {
      for (const [place, [other]] of names.entries()) {
        buttons[place].setAttribute('aria-pressed', String(other === key));
      }
      choose(key);
    },
  }, text));
  return element('div', { class: 'controls', role: 'group', 'aria-label': label }, ...buttons);
}

function showTip(event, text) {
  const tip = document.getElementById('tip');
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  const below = event.clientY + 16;
  tip.style.top = `${below + height > innerHeight ? event.clientY - height - 10 : below}px`;
}

function stepTitle(step) {
  return `${STEP_NAMES[step.name]}: ${counted(step.rows, 'row')} behind ${counted(step.past, 'cached position')}`;
}

function showOverview(content, summary) {
  const [draft, verify] = summary.steps;
  content.append(element('div', { class: 'tiles' },
    tile(seconds(draft.seconds), 'a draft step'),
    tile(seconds(verify.seconds), `a verify step of ${counted(verify.rows, 'row')}`),
    tile((draft.seconds / verify.seconds).toFixed(3), 'draft step to verify step'),
    ...(summary.run && summary.run.drafted ? [
      tile(percent(summary.run.acceptance_rate), 'of drafted tokens accepted'),
      tile(summary.run.mean_acceptance_length.toFixed(2), 'tokens a round')] : [])));
  const rows = summary.steps.map((step) => [
    stepTitle(step), count(step.cycles), seconds(step.seconds), bytes(step.bytes),
    ...['dram', 'array', 'vector'].map((unit) => {
      const share = step.cycles ? step.busy[unit] / step.cycles : 0;
      return element('span', {}, bar(share, unit), percent(share));
    }),
    ['dram', 'array', 'vector'].map((unit) => count(step.bounds[unit])).join(' / ')]);
  content.append(element('h3', {}, 'Steps'), element('p', {},
    'How long each unit is busy, and how many operations keep which unit busy longest. Units work side by side.'), table('Steps', [['step'], ['cycles', 1], ['time', 1],
    ['DRAM traffic', 1], ['DRAM busy', 1], ['array busy', 1], ['vector busy', 1],
    ['bound by DRAM / array / vector', 1]], rows));
}

const PARTS = {
  overview: showOverview,
  passes: (...given) => showPasses(...given),
  timeline: (...given) => showTimelines(...given),
  roofline: (...given) => showRoofline(...given),
  operations: (...given) => showOperations(...given),
  acceptance: (...given) => showAcceptance(...given),
  weights: (...given) => showWeights(...given),
};

const built = new Map();

/** Show one part of the page, and build it where this is the first time. */
async function show(name) {
  for (const tab of document.querySelectorAll('[role="tab"]')) {
    const chosen = tab.getAttribute('aria-controls') === name;
    tab.setAttribute('aria-selected', String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    document.getElementById(tab.getAttribute('aria-controls')).hidden = !chosen;
  }
  history.replaceState(null, '', `#${name}`);
  if (!built.has(name)) built.set(name, build(name));
  await built.get(name);
}

/** Fill a part; until its data are unpacked it says so. */
async function build(name) {
  const section = document.getElementById(name);
  const waiting = element('p', { class: 'waiting', role: 'status' }, 'Unpacking \u2026');
  section.append(waiting);
  try {
    await PARTS[name](section.querySelector('.content'), await unpack('summary'));
    section.dataset.ready = 'true';
  } finally {
    waiting.remove();
  }
}

function start() {
  if (typeof DecompressionStream === 'undefined') {
    document.querySelector('main').prepend(element('p', { class: 'alert' },
      'This browser has no DecompressionStream: please use one from 2023 or later.'));
    return;
  }
  const tabs = [...document.querySelectorAll('[role="tab"]')];
  for (const [place, tab] of tabs.entries()) {
    tab.addEventListener('click', () => show(tab.getAttribute('aria-controls')));
    tab.addEventListener('keydown', (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = tabs[(place + step + tabs.length) % tabs.length];
      next.focus();
      next.click();
    });
  }
  const showAsked = () => {
    const asked = location.hash.slice(1);
    show(asked in PARTS ? asked : 'overview');
  };
  addEventListener('hashchange', showAsked);
  showAsked();
}
