/** The demo's guest: 64-bit code that tells over the serial port what it does, and waits for nobody. */
import { guest } from '../vmm/guest.ts';
import { FLAT_ADDRESS, type GuestImage } from '../vmm/image.ts';

/** Where things are in its memory. The listing below has the same numbers. */
export const Place = {
  TEXTS: 0x2000,
  /** The page that is shared, then private, then shared again; the host answers in its second half. */
  NOTE: 0x20_0000,
  ANSWER: 0x20_0800,
  /** Pages that become private in one go, and of which the guest gives some back. */
  LENT: 0x21_0000,
  GIVEN_BACK: 0x21_6000,
  /** Private pages of a slot that has no guest_memfd. */
  ORPHANS: 0x80_0000,
  /** Private pages of no slot at all. */
  NOWHERE: 0x90_0000,
} as const;

/** What the guest tells the host by port 0x80, where PCs show how far they have come (POST codes). */
export const Step = { NOTE_WRITTEN: 1, SECRET_READ: 2, GIVEN_BACK: 3 } as const;

export const NOTE = 'Dear host, this page is ours.';
export const SECRET = 'The treasure is under the old oak.';
export const ANSWER = 'I can read you, says the host.';

/** So that the host, when it looks for the secret in all guest memory, does not find it in the program itself. */
const MASK = 0x55;
const TEXT_SIZE = 0x80;

/** By index; the listing counts in the same way. */
const texts: readonly string[] = [
  'Hello from 64-bit mode! I leave a note in page 0x200000, which we share.\n',
  NOTE,
  'I find an answer below it: ',
  'This KVM has no private memory for me, so that is all that I can show here.\n',
  'Now I make that page private, and write a secret into it.\n',
  SECRET,
  'I read it back, from page 0x200000: ',
  'The page is shared again. I read there: ',
  'I make 16 pages private at once, and give 4 of them back.\n',
  'I write to 4 pages that are private and have no private memory behind them ...\n',
  '... and find there what I wrote.\n',
  'I write to private pages that no memory slot has ...\n',
  '... and find there what I wrote, too. Goodbye!\n',
];

// esi is 1 where the machine has private memory. r14 tells which hypercall instruction the processor has.
const code = guest(
  64,
  `
     41 89 f7             |          mov r15d, esi
     31 c0                |          xor eax, eax
     0f a2                |          cpuid
     45 31 f6             |          xor r14d, r14d
     81 f9 63 41 4d 44    |          cmp ecx, 0x444d4163       # "AuthenticAMD"
     41 0f 94 c6          |          sete r14b
                          |
     be 00 20 00 00       |          mov esi, 0x2000           # texts: 0x80 bytes each
     e8 e1 00 00 00       |          call print                # "Hello"
     bf 00 00 20 00       |          mov edi, 0x200000
     e8 09 01 00 00       |          call copy                 # the note
     b0 01                |          mov al, 1
     e6 80                |          out 0x80, al
     e8 ce 00 00 00       |          call print                # "I find an answer"
     bf 00 08 20 00       |          mov edi, 0x200800
     e8 dc 00 00 00       |          call quote
     45 85 ff             |          test r15d, r15d
     75 06                |          jnz private
     e8 ba 00 00 00       |          call print                # "no private memory"
     f4                   |          hlt
                          |
     48 83 ee 80          | private: sub rsi, -0x80
     e8 b0 00 00 00       |          call print                # "Now I make that page private"
     bb 00 00 20 00       |          mov ebx, 0x200000
     b9 01 00 00 00       |          mov ecx, 1
     ba 10 00 00 00       |          mov edx, 0x10             # KVM_MAP_GPA_RANGE_ENCRYPTED
     e8 fb 00 00 00       |          call convert
     bf 00 00 20 00       |          mov edi, 0x200000
     ac                   | unmask:  lodsb
     34 55                |          xor al, 0x55
     aa                   |          stosb
     84 c0                |          test al, al
     75 f8                |          jnz unmask
     e8 96 00 00 00       |          call next
     e8 85 00 00 00       |          call print                # "I read it back"
     bf 00 00 20 00       |          mov edi, 0x200000
     e8 93 00 00 00       |          call quote
     b0 02                |          mov al, 2
     e6 80                |          out 0x80, al
     bb 00 00 20 00       |          mov ebx, 0x200000
     b9 01 00 00 00       |          mov ecx, 1
     31 d2                |          xor edx, edx
     e8 c5 00 00 00       |          call convert
     e8 61 00 00 00       |          call print                # "The page is shared again"
     bf 00 00 20 00       |          mov edi, 0x200000
     e8 6f 00 00 00       |          call quote
     b0 03                |          mov al, 3
     e6 80                |          out 0x80, al
                          |
     e8 4e 00 00 00       |          call print                # "16 pages"
     bb 00 00 21 00       |          mov ebx, 0x210000
     b9 10 00 00 00       |          mov ecx, 16
     ba 10 00 00 00       |          mov edx, 0x10
     e8 99 00 00 00       |          call convert
     bb 00 60 21 00       |          mov ebx, 0x216000
     b9 04 00 00 00       |          mov ecx, 4
     31 d2                |          xor edx, edx
     e8 88 00 00 00       |          call convert
                          |
     e8 24 00 00 00       |          call print                # "4 pages"
     bf 00 00 80 00       |          mov edi, 0x800000
     e8 54 00 00 00       |          call touch
     e8 15 00 00 00       |          call print                # "what I wrote"
     e8 10 00 00 00       |          call print                # "no memory slot"
     bf 00 00 90 00       |          mov edi, 0x900000
     e8 40 00 00 00       |          call touch
     e8 01 00 00 00       |          call print                # "what I wrote, too"
     f4                   |          hlt
                          |
                          | # Prints the text at rsi, and goes on to the next.
     66 ba f8 03          | print:   mov dx, 0x3f8
     ac                   | 1:       lodsb
     84 c0                |          test al, al
     74 03                |          jz next
     ee                   |          out dx, al
     eb f8                |          jmp 1b
                          | # rsi: from within a text to the next one.
     48 ff ce             | next:    dec rsi
     48 83 e6 80          |          and rsi, -0x80
     48 83 ee 80          |          sub rsi, -0x80
     c3                   |          ret
                          | # Prints the text at rdi in quotes.
     66 ba f8 03          | quote:   mov dx, 0x3f8
     b0 22                |          mov al, '"'
     ee                   |          out dx, al
     8a 07                | 1:       mov al, [rdi]
     48 ff c7             |          inc rdi
     84 c0                |          test al, al
     74 03                |          jz 2f
     ee                   |          out dx, al
     eb f4                |          jmp 1b
     b0 22                | 2:       mov al, '"'
     ee                   |          out dx, al
     b0 0a                |          mov al, 10
     ee                   |          out dx, al
     c3                   |          ret
                          | # Copies the text at rsi to rdi, and goes on to the next.
     ac                   | copy:    lodsb
     aa                   |          stosb
     84 c0                |          test al, al
     75 fa                |          jnz copy
     eb d2                |          jmp next
                          | # Writes to 4 pages from rdi on, and reads them again.
     b9 04 00 00 00       | touch:   mov ecx, 4
     48 89 3f             | 1:       mov [rdi], rdi
     48 81 c7 00 10 00 00 |          add rdi, 0x1000
     e2 f4                |          loop 1b
     b9 04 00 00 00       |          mov ecx, 4
     48 81 ef 00 10 00 00 | 2:       sub rdi, 0x1000
     48 39 3f             |          cmp [rdi], rdi
     75 1b                |          jne failed
     e2 f2                |          loop 2b
     c3                   |          ret
                          | # KVM_HC_MAP_GPA_RANGE: rbx the address, rcx how many pages, rdx which state.
     b8 0c 00 00 00       | convert: mov eax, 12
     45 85 f6             |          test r14d, r14d
     74 05                |          jz intel
     0f 01 d9             |          vmmcall
     eb 03                |          jmp done
     0f 01 c1             | intel:   vmcall
     48 85 c0             | done:    test rax, rax
     75 01                |          jnz failed
     c3                   |          ret
     b0 01                | failed:  mov al, 1
     e6 f4                |          out 0xf4, al
     f4                   |          hlt
`,
);

/** A text in its place of TEXT_SIZE bytes, with the zero that ends it. */
function textBytes(text: string): Uint8Array {
  const bytes = new Uint8Array(TEXT_SIZE);
  new TextEncoder().encodeInto(text, bytes);
  return text === SECRET ? bytes.map((byte) => byte ^ MASK) : bytes;
}

const data = Uint8Array.from(texts.flatMap((text) => [...textBytes(text)]));

export const demoGuest: GuestImage = {
  name: "the demo's guest",
  mode: 'long',
  entry: FLAT_ADDRESS,
  segments: [
    { address: FLAT_ADDRESS, size: code.code.length, data: code.code },
    { address: Place.TEXTS, size: data.length, data },
  ],
};
