/** Builds the addon from its sources, in a clone and in node_modules alike. */
import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { VmexitError } from '../hypervisor/errors.ts';
import { packageRequire, packageRoot } from '../package.ts';

/** Of node-gyp, where neither the project nor npm has one. */
const NODE_GYP = 'node-gyp@12.4';

/** Where node was installed: its headers may be beside it, and an npm with a node-gyp. */
const prefix = dirname(dirname(process.execPath));

const refuse = (message: string, options?: ErrorOptions) =>
  new VmexitError('ERR_KVM_SETUP', message, options);

export interface BuildOptions {
  /** The folder with binding.gyp and native/; the package's own without it. */
  readonly folder?: string;
  /** Variables over those of this process: CXX, CXXFLAGS, ... */
  readonly env?: NodeJS.ProcessEnv;
  /** What the compiler and node-gyp say, in pieces. */
  readonly report?: (text: string) => void;
}

/**
 * Compiles the addon, and gives the path of what was built: build/Release/vmexit.node in the folder.
 * @throws VmexitError ERR_KVM_SETUP when this is not Linux on x86-64, a tool is missing, the folder cannot be written, or
 *   the build fails
 */
export async function buildAddon(options: BuildOptions = {}): Promise<string> {
  const { folder = packageRoot(), report = () => {} } = options;
  const env = {
    ...process.env,
    // binding.gyp asks `node` where node-addon-api is.
    PATH: `${process.env.PATH ?? ''}${delimiter}${dirname(process.execPath)}`,
    ...options.env,
  };
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw refuse(
      `the addon is for Linux on x86-64, and this is ${process.platform} on ${process.arch}: guests run on the simulator here`,
    );
  }
  const missing = missingTools(env);
  if (missing.length > 0) throw refuse(`building the addon needs ${missing.join(' and ')}: ${INSTALL}`);
  try {
    accessSync(folder, constants.W_OK);
  } catch (cause) {
    throw refuse(`${folder} cannot be written by this user: run this as the one that installed vmexit`, {
      cause,
    });
  }

  const [command, ...args] = nodeGyp();
  // Node's headers come from the network where none are beside the binary.
  const headers = existsSync(join(prefix, 'include', 'node', 'node_api.h')) ? [`--nodedir=${prefix}`] : [];
  const status = await new Promise<number | string>((resolve) => {
    const child = spawn(command, [...args, 'rebuild', '--silent', '--jobs=max', ...headers], {
      cwd: folder,
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', report);
    child.on('error', (error) => resolve(error.message));
    child.on('close', (code, signal) => resolve(code ?? signal ?? 1));
  });
  const built = join(folder, 'build', 'Release', 'vmexit.node');
  if (status === 0 && existsSync(built)) return built;
  throw refuse(`the addon was not built: ${[command, ...args].join(' ')} in ${folder} ended with ${status}`);
}

const INSTALL =
  'apt-get install g++ make python3 (Debian, Ubuntu), dnf install gcc-c++ make python3 (Fedora, RHEL), ' +
  'apk add g++ make python3 linux-headers (Alpine)';

/** What node-gyp calls, and cannot do without; each is the first word of what the environment names. */
function missingTools(env: NodeJS.ProcessEnv): string[] {
  const tools = [env.CXX || 'g++', env.MAKE || 'make', env.PYTHON || env.npm_config_python || 'python3'];
  const runs = (tool: string) => spawnSync(tool.split(' ')[0]!, ['--version'], { env, stdio: 'ignore' });
  return tools.filter((tool) => runs(tool).error !== undefined);
}

/** The command that is node-gyp: this project's, the one that npm runs this with, the one beside node, or a fetched one. */
function nodeGyp(): [string, ...string[]] {
  const beside = join(prefix, 'lib', 'node_modules', 'npm', 'node_modules', 'node-gyp', 'bin', 'node-gyp.js');
  const found = [installed(), process.env.npm_config_node_gyp, beside].find(
    (path) => path && existsSync(path),
  );
  return found ? [process.execPath, found] : ['npm', 'exec', '--yes', '--', NODE_GYP];
}

function installed(): string | undefined {
  try {
    return packageRequire.resolve('node-gyp/bin/node-gyp.js');
  } catch {
    return undefined;
  }
}
