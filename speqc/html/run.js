function showAcceptance(content, summary) {
  const { run } = summary;
  if (!run || !run.rounds) {
    content.append(element('p', {}, run
      ? `The run decoded ${run.mode === 'draft' ? 'with the draft alone' : 'autoregressively'}: there are no rounds.`
      : 'No run was given. Record one with speqc run --json RUN.json, and make this report with --run RUN.json.'));
    return;
  }
  content.append(element('div', { class: 'tiles' },
    tile(percent(run.acceptance_rate), `accepted: ${count(run.accepted)} of ${count(run.drafted)} drafted`),
    tile(run.mean_acceptance_length.toFixed(2), 'tokens a round, the full model\u2019s own included'),
    tile(count(run.rounds.length), nouns(run.rounds.length, 'round')), tile(count(run.early_exits), 'ended drafting early'),
    tile(count(run.new_tokens), `${nouns(run.new_tokens, 'new token')} behind ${count(run.prompt_tokens)}`)));
  content.append(element('h3', {}, 'By position'),
    element('p', {}, 'Share of tokens accepted at each drafted position, of the rounds that drafted so far.'),
    positionPlot(run), positionTable(run));
  content.append(element('h3', {}, 'Round by round'),
    element('p', {}, 'Drafted tokens of each round: accepted ones in full colour, rejected ones pale; underlined where drafting ended early, under the exit threshold.'), roundPlot(run.rounds));
}

function reached(run, position) {
  return run.rounds.filter((round) => round.drafted > position).length;
}

function positionPlot(run) {
  const shares = run.acceptance_per_position, wide = 64;
  const width = Math.max(320, 70 + shares.length * wide);
  const plot = drawn('svg', { viewBox: `0 0 ${width} 250`, width, role: 'img', id: 'acceptance-plot',
    'aria-label': 'Acceptance by position; the table below has the numbers' });
  for (const share of [0, 0.5, 1]) {
    const y = 210 - 180 * share;
    plot.append(drawn('line', { x1: 48, x2: width - 10, y1: y, y2: y, stroke: 'var(--line)' }),
      drawn('text', { x: 42, y: y + 4, 'text-anchor': 'end' }, `${100 * share}\u2009%`));
  }
  for (const [place, share] of shares.entries()) {
    const x = 58 + place * wide, tall = 180 * share;
    plot.append(drawn('rect', { x, y: 210 - tall, width: wide - 16, height: tall, fill: 'var(--array)', rx: 3 }),
      drawn('text', { x: x + (wide - 16) / 2, y: 204 - tall, 'text-anchor': 'middle', class: 'label' }, percent(share)),
      drawn('text', { x: x + (wide - 16) / 2, y: 230, 'text-anchor': 'middle' }, String(place + 1)));
  }
  return plot;
}

function positionTable(run) {
  return table('Acceptance by position', [['position', 1], ['rounds that drafted it', 1], ['accepted', 1], ['share', 1]],
    run.acceptance_per_position.map((share, place) => [String(place + 1), count(reached(run, place)),
      count(run.rounds.filter((round) => round.accepted > place).length), percent(share)]));
}

function roundPlot(rounds) {
  const size = 12, columns = 90, most = Math.max(1, ...rounds.map((round) => round.drafted));
  const lines = Math.ceil(rounds.length / columns), tall = most * size + 14;
  const width = Math.max(320, Math.min(rounds.length, columns) * size + 16);
  const plot = drawn('svg', { viewBox: `0 0 ${width} ${lines * tall + 8}`, width, role: 'img', 'aria-label': counted(rounds.length, 'round') });
  for (const [place, round] of rounds.entries()) {
    const x = 8 + place % columns * size, floor = (Math.floor(place / columns) + 1) * tall - 2;
    const node = drawn('g', {});
    for (let token = 0; token < round.drafted; token++) {
      node.append(drawn('rect', { x, y: floor - (token + 1) * size, width: size - 2, height: size - 2, rx: 2,
        fill: 'var(--array)', 'fill-opacity': token < round.accepted ? 1 : 0.25 }));
    }
    node.append(drawn('rect', { x, y: floor + 2, width: size - 2, height: 3, fill: round.early_exit ? 'var(--draft)' : 'var(--line)' }));
    node.addEventListener('pointermove', (event) => showTip(event,
      `round ${place + 1}: ${round.accepted} of ${round.drafted} accepted${round.early_exit ? ', drafting ended early' : ''}`));
    node.addEventListener('pointerleave', (event) => showTip(event, ''));
    plot.append(node);
  }
  return plot;
}
