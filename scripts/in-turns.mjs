// Jobs side by side, with the output of one at a time.

/**
 * Runs the jobs, `most` at a time, and gives their results in order. Each is called with a function for its output: what
 * the first writes is written at once, what the others write when those before them have ended.
 */
export async function inTurns(jobs, most, run) {
  const held = jobs.map(() => []);
  const done = jobs.map(() => false);
  let turn = 0;
  const write = (index) => (chunk) => {
    if (index === turn) process.stdout.write(chunk);
    else held[index].push(chunk);
  };
  const advance = () => {
    while (done[turn]) {
      turn++;
      for (const chunk of held[turn]?.splice(0) ?? []) process.stdout.write(chunk);
    }
  };
  const results = [];
  let next = 0;
  const worker = async () => {
    for (let index = next++; index < jobs.length; index = next++) {
      results[index] = await run(jobs[index], write(index));
      done[index] = true;
      advance();
    }
  };
  await Promise.all(Array.from({ length: Math.min(most, jobs.length) }, worker));
  return results;
}
