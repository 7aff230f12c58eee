/** Errors that cross threads, and those of a recorded session. */
import { expect, it } from 'vitest';
import { dataOf, errorOf } from '../../src/hypervisor/error-data.ts';
import { KvmError, VmexitError } from '../../src/index.ts';

const again = (error: unknown): Error => errorOf(JSON.parse(JSON.stringify(dataOf(error))));

it('an error of the kernel, of vmexit and of the language is the same once more', () => {
  const kernel = new KvmError(-22, 'ioctl', 'KVM_SET_REGS', 'another value');
  expect(again(kernel)).toEqual(kernel);
  expect(again(kernel)).toBeInstanceOf(KvmError);
  expect(again(new KvmError(-12, 'mmap'))).toMatchObject({
    code: 'ENOMEM',
    request: undefined,
    syscall: 'mmap',
  });
  expect(again(new VmexitError('ERR_KVM_CLOSED', 'it is closed'))).toBeInstanceOf(VmexitError);
  const range = Object.assign(new RangeError('no'), { code: 'ERR_KVM_INVALID_ARG' });
  expect(again(range)).toEqual(range);
  expect(again(range)).toBeInstanceOf(RangeError);
  expect(again(new TypeError('no'))).toBeInstanceOf(TypeError);
});

it('any other keeps its message and its code, and what is no error its text', () => {
  class Own extends Error {
    override readonly name = 'Own';
    readonly code = 'ERR_OWN';
  }
  expect(again(new Own('mine'))).toMatchObject({ message: 'mine', code: 'ERR_OWN' });
  expect(again(Object.assign(new Error('no'), { code: 5 }))).not.toHaveProperty('code');
  expect(again('thrown')).toMatchObject({ name: 'Error', message: 'thrown' });
});
