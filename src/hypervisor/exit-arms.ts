/** Every arm of kvm_run's exit union, live: its fields are read in place, and the answers written in place. */
import { EXIT_OFFSET, exitArms } from '../uapi/kvm-run.ts';
import type { Struct, Type, Value } from '../uapi/layout.ts';

/** What the VMM answers, by arm: the fields that KVM reads when the vCPU runs on. A new exit is a row in `exitArms`, and here. */
const answers = {
  mmio: ['data'],
  hypercall: ['ret'],
  msr: ['error', 'data'],
  hyperv: ['result', 'status'],
  xen: ['result'],
  tdx: ['ret', 'r11', 'r12', 'r13', 'r14'],
  snpReqCerts: ['ret'],
} as const satisfies { readonly [A in keyof typeof exitArms]?: readonly string[] };

type Answers = typeof answers;
type AnswersOf<A> = A extends keyof Answers ? Answers[A][number] : never;

type FieldsOf<S> = S extends Struct<infer F> ? F : never;
/** C's union `u` has no name of its own here: its members are the struct's. */
type Members<F> = Omit<F, 'u'> & (F extends { u: infer U } ? FieldsOf<U> : unknown);
type LiveFields<F, W> = {
  readonly [K in keyof F as K extends W ? never : K]: F[K] extends Struct ? Live<F[K], W> : Value<F[K]>;
} & { -readonly [K in keyof F as K extends W ? K : never]: Value<F[K]> };
type Live<S, W> = LiveFields<Members<FieldsOf<S>>, W>;

/** The arms of the exit union by the names that `exitArms` of `vmexit/uapi` has. Only what is answered can be written. */
export type ExitArms = {
  readonly [A in keyof typeof exitArms as (typeof exitArms)[A] extends Struct ? A : never]: Live<
    (typeof exitArms)[A],
    AnswersOf<A>
  >;
};

/** Where the arms are: the view, as long as the vCPU is open. */
interface Page {
  readonly view: DataView;
}

const isStruct = (type: Type): type is Struct => 'fields' in type;

function properties(
  page: Page,
  type: Struct,
  at: number,
  writable: readonly string[],
): PropertyDescriptorMap {
  const found: PropertyDescriptorMap = {};
  for (const [name, field] of Object.entries(type.fields)) {
    const inner = field.type as Type;
    const offset = at + field.offset;
    if (isStruct(inner) && name === 'u') {
      Object.assign(found, properties(page, inner, offset, writable));
    } else if (isStruct(inner)) {
      found[name] = { value: live(page, inner, offset, writable), enumerable: true };
    } else {
      found[name] = {
        get: () => inner.get(page.view, offset),
        // By the struct, whose error names the field.
        ...(writable.includes(name) && {
          set: (value: unknown) => type.set(page.view, at, { [name]: value } as never),
        }),
        enumerable: true,
      };
    }
  }
  return found;
}

const live = (page: Page, type: Struct, at: number, writable: readonly string[]): object =>
  Object.freeze(Object.defineProperties({}, properties(page, type, at, writable)));

/** The arms over a vCPU's kvm_run. */
export function exitArmsOf(page: Page): ExitArms {
  const arms = Object.entries(exitArms as Readonly<Record<string, Type>>).flatMap(([name, type]) =>
    isStruct(type)
      ? [[name, live(page, type, EXIT_OFFSET, answers[name as keyof Answers] ?? [])] as const]
      : [],
  );
  return Object.freeze(Object.fromEntries(arms)) as ExitArms;
}
