// A worker of a program's own file, which does what `does` names there, and tells things by messages.
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';

export class Thread {
  /** @param url of the program, its import.meta.url */
  constructor(url, does, data) {
    this.worker = new Worker(fileURLToPath(url), { workerData: { does, ...data } });
    this.said = [];
    this.waiting = [];
    this.worker.on('message', (message) => (this.waiting.shift() ?? ((one) => this.said.push(one)))(message));
    this.ended = new Promise((done) => this.worker.once('exit', done));
  }

  /** What it tells next. */
  next() {
    return this.said.length > 0 ? this.said.shift() : new Promise((done) => this.waiting.push(done));
  }
}
