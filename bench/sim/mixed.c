// A program as compilers make them, for the simulator's benchmark: hashing, sorting, compression. It runs in
// long mode on bare memory: gcc -O2 -ffreestanding -nostdlib -static. The result leaves by port 0xf4, 32
// bits.
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

enum { WORDS = 1 << 16, TEXT = 1 << 18, WINDOW = 1 << 12, ROUNDS = 8 };

static u32 words[WORDS];
static u8 text[TEXT];
static u8 packed[TEXT * 2];
static u8 unpacked[TEXT];
static int heads[WINDOW];

static u32 seed = 12345;
static u32 next(void) {
  seed ^= seed << 13;
  seed ^= seed >> 17;
  seed ^= seed << 5;
  return seed;
}

static inline u32 rotate(u32 x, int n) { return x >> n | x << (32 - n); }

static const u32 k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// SHA-256's compression function (FIPS 180-4, 6.2.2).
static void sha256(u32 state[8], const u8 *block) {
  u32 w[64];
  for (int i = 0; i < 16; i++)
    w[i] = (u32)block[i * 4] << 24 | block[i * 4 + 1] << 16 | block[i * 4 + 2] << 8 | block[i * 4 + 3];
  for (int i = 16; i < 64; i++) {
    u32 a = w[i - 15], b = w[i - 2];
    w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
           (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
  }
  u32 s[8];
  for (int i = 0; i < 8; i++) s[i] = state[i];
  for (int i = 0; i < 64; i++) {
    u32 t1 = s[7] + (rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25)) +
             ((s[4] & s[5]) ^ (~s[4] & s[6])) + k[i] + w[i];
    u32 t2 = (rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22)) +
             ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
    for (int j = 7; j > 0; j--) s[j] = s[j - 1];
    s[4] += t1;
    s[0] = t1 + t2;
  }
  for (int i = 0; i < 8; i++) state[i] += s[i];
}

static void sort(u32 *a, long low, long high) {
  while (low < high) {
    u32 pivot = a[(low + high) / 2];
    long i = low, j = high;
    while (i <= j) {
      while (a[i] < pivot) i++;
      while (a[j] > pivot) j--;
      if (i <= j) {
        u32 t = a[i];
        a[i++] = a[j];
        a[j--] = t;
      }
    }
    if (j - low < high - i) {
      sort(a, low, j);
      low = i;
    } else {
      sort(a, i, high);
      high = j;
    }
  }
}

// LZ77 with a hash of three bytes: literals as 0 and the byte, matches as their length and distance.
static long compress(const u8 *from, long size, u8 *to) {
  u8 *out = to;
  for (int i = 0; i < WINDOW; i++) heads[i] = -1;
  for (long at = 0; at < size;) {
    long length = 0, distance = 0;
    if (at + 3 <= size) {
      u32 hash = (from[at] * 0x9e5f + from[at + 1] * 0x3d7 + from[at + 2] * 0x2f) % WINDOW;
      long found = heads[hash];
      heads[hash] = (int)at;
      if (found >= 0 && at - found < 65536)
        while (length < 255 && at + length < size && from[found + length] == from[at + length]) length++;
      distance = at - found;
    }
    if (length >= 4) {
      *out++ = (u8)length;
      *out++ = (u8)distance;
      *out++ = (u8)(distance >> 8);
      at += length;
    } else {
      *out++ = 0;
      *out++ = from[at++];
    }
  }
  return out - to;
}

static long expand(const u8 *from, long size, u8 *to) {
  u8 *out = to;
  for (long at = 0; at < size;) {
    long length = from[at++];
    if (length == 0) {
      *out++ = from[at++];
    } else {
      long distance = from[at] | from[at + 1] << 8;
      at += 2;
      while (length--) {
        *out = out[-distance];
        out++;
      }
    }
  }
  return out - to;
}

void _start(void) {
  u32 state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  u64 sum = 0;
  for (int round = 0; round < ROUNDS; round++) {
    for (int i = 0; i < WORDS; i++) words[i] = next();
    sort(words, 0, WORDS - 1);
    for (int i = 1; i < WORDS; i++)
      if (words[i - 1] > words[i]) sum += 1000000;
    for (int i = 0; i < TEXT; i++) text[i] = i % 7 < 5 ? "the quick brown fox "[i % 20] : next() >> 28;
    for (int i = 0; i + 64 <= TEXT; i += 64) sha256(state, text + i);
    long size = compress(text, TEXT, packed);
    if (expand(packed, size, unpacked) != TEXT) sum += 2000000;
    for (int i = 0; i < TEXT; i++)
      if (text[i] != unpacked[i]) sum += 3000000;
    sum = sum * 31 + size + words[WORDS / 2];
  }
  for (int i = 0; i < 8; i++) sum = sum * 31 + state[i];
  __asm__ volatile("outl %0, $0xf4" : : "a"((u32)sum));
  __asm__ volatile("hlt");
}
