// Serves pages in a thread of its own: the test's stands still in KVM_RUN. Data of the worker: what it does, by name,
// and the pages' bytes, shared. It tells its port.
import { createServer as createHttpServer } from 'node:http';
import { createServer } from 'node:net';
import { parentPort, workerData } from 'node:worker_threads';

const { behaviour, bytes } = workerData;
const PAGE = 4096;

const headers = (from, to) => ({ 'content-range': `bytes ${from}-${to}/${bytes.length}` });

/** Of an HTTP server: what it answers to a request for bytes from one offset to another. */
const http = {
  ranges: (response, from, to) =>
    setTimeout(() => response.writeHead(206, headers(from, to)).end(bytes.slice(from, to + 1)), 2),
  elsewhere: (response, from, to) =>
    response.writeHead(206, headers(from + PAGE, to + PAGE)).end(bytes.slice(from + PAGE, to + PAGE + 1)),
  silent: () => {},
};
/** Of a socket: what it sends. */
const socket = {
  stream: (connection) => connection.end(bytes.slice()),
  cut: (connection) => connection.end(bytes.slice(0, 100 * PAGE + 7)),
};

const answered = http[behaviour];
const server =
  answered === undefined
    ? createServer((connection) => {
        connection.on('error', () => {});
        socket[behaviour](connection);
      })
    : createHttpServer((request, response) => {
        const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range) ?? [];
        answered(response, Number(from), Number(to));
      });
server.listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port));
