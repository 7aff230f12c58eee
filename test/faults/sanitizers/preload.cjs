// Loaded by each node that a run with a sanitizer starts (NODE_OPTIONS): the sanitizer's library is for node alone. Other
// programs have nothing of the addon's, and some do not bear it: dash crashes at its first vfork under libtsan.
const { ChildProcess } = require('node:child_process');

const library = process.env.VMEXIT_SANITIZER;
const { LD_PRELOAD = '' } = process.env;
const others = LD_PRELOAD.split(':').filter((name) => name !== library);
if (others.join('') === '') delete process.env.LD_PRELOAD;
else process.env.LD_PRELOAD = others.join(':');

const { spawn } = ChildProcess.prototype;
ChildProcess.prototype.spawn = function (options) {
  if (options.file !== process.execPath) return spawn.call(this, options);
  const name = 'LD_PRELOAD=';
  const own = options.envPairs.filter((pair) => pair.startsWith(name)).map((pair) => pair.slice(name.length));
  const envPairs = options.envPairs.filter((pair) => !pair.startsWith(name));
  // The sanitizer's comes first: it says so itself, and ends the process otherwise.
  return spawn.call(this, { ...options, envPairs: [...envPairs, `${name}${[library, ...own].join(':')}`] });
};
