/*
 * Matrices: rows of int8 activations with ternary or int8 weights, summed as integers, which no order changes.
 *
 *     m = max |x|;  q = round(127 x / m);   y_o (+)= (sum over segments s: (sum of w_oi q_i, i of s) scale_os) m / 127
 *
 * Weights lie in cells of 16 outputs. A ternary cell is 16 columns in 64 bytes: byte b of lane r holds, in bits 2j and 2j+1, the
 * code w + 1 of column 4j + b of output r. A byte cell is 4 columns in 64 bytes: byte b of lane r is w + 128.
 */
typedef struct {
    const unsigned char *cells, *scales, *norm;
    uint32_t bytes, outputs, inputs, segment, segments, groups;
} Matrix;

/* A row of activations: the codes, the sums of segments, and codes of 4 columns twice as 16 bits, where vectors take them so. */
typedef struct {
    signed char *q;
    int16_t *wide;
    int32_t *sums;
    float scale;
    uint32_t inputs, segment;
} Row;

#ifndef STORY_PLAIN
#if defined(__AVX2__)
#include <immintrin.h>
#define VECTORS "AVX2"
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define VNNI
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define VECTORS "NEON"
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#define VECTORS "wasm"
#elif defined(__SSE2__)
#include <emmintrin.h>
#define VECTORS "SSE2"
#endif
#endif

#if defined(__AVX2__) && defined(VECTORS)

INLINE __m256i quad(const signed char *q) { int32_t x; memcpy(&x, q, 4); return _mm256_set1_epi32(x); }

#if defined(VNNI)
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
#define DPBUSD _mm256_dpbusd_epi32
#else
#define DPBUSD _mm256_dpbusd_avx_epi32
#endif
INLINE void ternary_sums(int32_t *sums, const unsigned char *cells, const Row *row, size_t first, size_t groups) {
    const signed char *q = row->q + 16 * first;
    __m256i low[2], high[2], mask = _mm256_set1_epi8(0x03), next = _mm256_set1_epi8(0x0c);
    for (int h = 0; h < 2; h++) low[h] = high[h] = _mm256_setzero_si256();
    for (size_t g = 0; g < groups; g++, q += 16, cells += 64) {
        __m256i x0 = quad(q), x1 = quad(q + 4), x2 = quad(q + 8), x3 = quad(q + 12);
        for (int h = 0; h < 2; h++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(cells + 32 * h)), w = _mm256_srli_epi16(v, 4);
            low[h] = DPBUSD(DPBUSD(low[h], _mm256_and_si256(v, mask), x0), _mm256_and_si256(w, mask), x2);
            high[h] = DPBUSD(DPBUSD(high[h], _mm256_and_si256(v, next), x1), _mm256_and_si256(w, next), x3);
        }
    }
    for (int h = 0; h < 2; h++)
        _mm256_storeu_si256((__m256i *)(void *)(sums + 8 * h), _mm256_add_epi32(low[h], _mm256_srai_epi32(high[h], 2)));
}
#else
INLINE void ternary_sums(int32_t *sums, const unsigned char *cells, const Row *row, size_t first, size_t groups) {
    const signed char *q = row->q + 16 * first;
    __m256i all[2], mask = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
    all[0] = all[1] = _mm256_setzero_si256();
    while (groups) {
        /* A group adds at most 8 * 2 * 127: sixteen fit into 16 bits. */
        size_t n = groups < 16 ? groups : 16;
        __m256i acc[2];
        acc[0] = acc[1] = _mm256_setzero_si256();
        for (size_t g = 0; g < n; g++, q += 16, cells += 64) {
            __m256i x0 = quad(q), x1 = quad(q + 4), x2 = quad(q + 8), x3 = quad(q + 12);
            for (int h = 0; h < 2; h++) {
                __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(cells + 32 * h));
                __m256i a = _mm256_maddubs_epi16(_mm256_and_si256(v, mask), x0);
                __m256i b = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 2), mask), x1);
                __m256i c = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 4), mask), x2);
                __m256i d = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 6), mask), x3);
                acc[h] = _mm256_add_epi16(acc[h], _mm256_add_epi16(_mm256_add_epi16(a, b), _mm256_add_epi16(c, d)));
            }
        }
        for (int h = 0; h < 2; h++) all[h] = _mm256_add_epi32(all[h], _mm256_madd_epi16(acc[h], ones));
        groups -= n;
    }
    for (int h = 0; h < 2; h++) _mm256_storeu_si256((__m256i *)(void *)(sums + 8 * h), all[h]);
}
#endif

INLINE void byte_sums(int32_t *sums, const unsigned char *cells, const Row *row, size_t groups) {
    const signed char *q = row->q;
    __m256i acc[2];
    acc[0] = acc[1] = _mm256_setzero_si256();
    for (size_t k = 0; k < 4 * groups; k++, q += 4, cells += 64) {
        __m256i x = quad(q);
        for (int h = 0; h < 2; h++) {
            __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)(cells + 32 * h));
#if defined(VNNI)
            acc[h] = DPBUSD(acc[h], v, x);
#else
            __m256i w = _mm256_xor_si256(v, _mm256_set1_epi8(-128));
            __m256i sum = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
            acc[h] = _mm256_add_epi32(acc[h], _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
#endif
        }
    }
    for (int h = 0; h < 2; h++) {
#if defined(VNNI)
        acc[h] = _mm256_sub_epi32(acc[h], _mm256_set1_epi32(128 * row->sums[0]));
#endif
        _mm256_storeu_si256((__m256i *)(void *)(sums + 8 * h), acc[h]);
    }
}

#elif defined(__ARM_FEATURE_DOTPROD) && defined(VECTORS)

INLINE int8x16_t quad(const signed char *q) { int32_t x; memcpy(&x, q, 4); return vreinterpretq_s8_s32(vdupq_n_s32(x)); }

INLINE void ternary_sums(int32_t *sums, const unsigned char *cells, const Row *row, size_t first, size_t groups) {
    const signed char *q = row->q + 16 * first;
    int32x4_t acc[4];
    uint8x16_t mask = vdupq_n_u8(3);
    for (int h = 0; h < 4; h++) acc[h] = vdupq_n_s32(0);
    for (size_t g = 0; g < groups; g++, q += 16, cells += 64) {
        int8x16_t x0 = quad(q), x1 = quad(q + 4), x2 = quad(q + 8), x3 = quad(q + 12);
        for (int h = 0; h < 4; h++) {
            uint8x16_t v = vld1q_u8(cells + 16 * h);
            acc[h] = vdotq_s32(acc[h], vreinterpretq_s8_u8(vandq_u8(v, mask)), x0);
            acc[h] = vdotq_s32(acc[h], vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 2), mask)), x1);
            acc[h] = vdotq_s32(acc[h], vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(v, 4), mask)), x2);
            acc[h] = vdotq_s32(acc[h], vreinterpretq_s8_u8(vshrq_n_u8(v, 6)), x3);
        }
    }
    for (int h = 0; h < 4; h++) vst1q_s32(sums + 4 * h, acc[h]);
}

INLINE void byte_sums(int32_t *sums, const unsigned char *cells, const Row *row, size_t groups) {
    const signed char *q = row->q;
    int32x4_t acc[4];
    for (int h = 0; h < 4; h++) acc[h] = vdupq_n_s32(0);
    for (size_t k = 0; k < 4 * groups; k++, q += 4, cells += 64) {
        int8x16_t x = quad(q);
        for (int h = 0; h < 4; h++) {
            int8x16_t w = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(cells + 16 * h), vdupq_n_u8(128)));
            acc[h] = vdotq_s32(acc[h], w, x);
        }
    }
    for (int h = 0; h < 4; h++) vst1q_s32(sums + 4 * h, acc[h]);
}

#elif defined(VECTORS)

/* Pairs of 16 bits multiplied and added, on SSE2 and wasm: sums of two columns each, of which two make an output. */
#define WIDE
#if defined(__wasm_simd128__)
typedef v128_t Vector;
#define ZERO wasm_i32x4_splat(0)
#define LOAD(p) wasm_v128_load(p)
#define STORE(p, v) wasm_v128_store(p, v)
#define AND(a, b) wasm_v128_and(a, b)
#define SHIFT(v, n) wasm_u16x8_shr(v, n)
#define BYTES(x) wasm_i8x16_splat(x)
#define LOW(v) wasm_u16x8_extend_low_u8x16(v)
#define HIGH(v) wasm_u16x8_extend_high_u8x16(v)
#define PAIRS(a, b) wasm_i32x4_dot_i16x8(a, b)
#define ADD(a, b) wasm_i32x4_add(a, b)
#define EVEN(a, b) wasm_i32x4_shuffle(a, b, 0, 2, 4, 6)
#define ODD(a, b) wasm_i32x4_shuffle(a, b, 1, 3, 5, 7)
#else
typedef __m128i Vector;
#define ZERO _mm_setzero_si128()
#define LOAD(p) _mm_loadu_si128((const __m128i *)(const void *)(p))
#define STORE(p, v) _mm_storeu_si128((__m128i *)(void *)(p), v)
#define AND(a, b) _mm_and_si128(a, b)
#define SHIFT(v, n) _mm_srli_epi16(v, n)
#define BYTES(x) _mm_set1_epi8(x)
#define LOW(v) _mm_unpacklo_epi8(v, _mm_setzero_si128())
#define HIGH(v) _mm_unpackhi_epi8(v, _mm_setzero_si128())
#define PAIRS(a, b) _mm_madd_epi16(a, b)
#define ADD(a, b) _mm_add_epi32(a, b)
#define EVEN(a, b) _mm_castps_si128(_mm_shuffle_ps(_mm_castsi128_ps(a), _mm_castsi128_ps(b), 0x88))
#define ODD(a, b) _mm_castps_si128(_mm_shuffle_ps(_mm_castsi128_ps(a), _mm_castsi128_ps(b), 0xdd))
#endif

INLINE void ternary_sums(int32_t *sums, const unsigned char *cells, const Row *row, size_t first, size_t groups) {
#if defined(__wasm_relaxed_simd__)
    /* Codes of 0 to 2 are within the 7 bits for which every machine gives the same sum. */
    const signed char *q = row->q + 16 * first;
    Vector acc[4];
    for (int h = 0; h < 4; h++) acc[h] = ZERO;
    for (size_t g = 0; g < groups; g++, q += 16, cells += 64) {
        Vector x0 = wasm_v128_load32_splat(q), x1 = wasm_v128_load32_splat(q + 4);
        Vector x2 = wasm_v128_load32_splat(q + 8), x3 = wasm_v128_load32_splat(q + 12);
        for (int h = 0; h < 4; h++) {
            Vector v = LOAD(cells + 16 * h);
            acc[h] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(x0, AND(v, BYTES(3)), acc[h]);
            acc[h] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(x1, AND(SHIFT(v, 2), BYTES(3)), acc[h]);
            acc[h] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(x2, AND(SHIFT(v, 4), BYTES(3)), acc[h]);
            acc[h] = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(x3, AND(SHIFT(v, 6), BYTES(3)), acc[h]);
        }
    }
    for (int h = 0; h < 4; h++) STORE(sums + 4 * h, acc[h]);
#else
    const int16_t *x = row->wide + 32 * first;
    for (int h = 0; h < 4; h++) {
        const unsigned char *cell = cells + 16 * h;
        Vector a = ZERO, b = ZERO;
        for (size_t g = 0; g < groups; g++, cell += 64) {
            Vector v = LOAD(cell), mask = BYTES(3);
            Vector c0 = AND(v, mask), c1 = AND(SHIFT(v, 2), mask), c2 = AND(SHIFT(v, 4), mask), c3 = AND(SHIFT(v, 6), mask);
            Vector x0 = LOAD(x + 32 * g), x1 = LOAD(x + 32 * g + 8), x2 = LOAD(x + 32 * g + 16), x3 = LOAD(x + 32 * g + 24);
            a = ADD(ADD(a, PAIRS(LOW(c0), x0)), ADD(ADD(PAIRS(LOW(c1), x1), PAIRS(LOW(c2), x2)), PAIRS(LOW(c3), x3)));
            b = ADD(ADD(b, PAIRS(HIGH(c0), x0)), ADD(ADD(PAIRS(HIGH(c1), x1), PAIRS(HIGH(c2), x2)), PAIRS(HIGH(c3), x3)));
        }
        STORE(sums + 4 * h, ADD(EVEN(a, b), ODD(a, b)));
    }
#endif
}

INLINE void byte_sums(int32_t *sums, const unsigned char *cells, const Row *row, size_t groups) {
    Vector a[4], b[4];
    for (int h = 0; h < 4; h++) a[h] = b[h] = ZERO;
    for (size_t k = 0; k < 4 * groups; k++, cells += 64) {
        Vector x = LOAD(row->wide + 8 * k);
        for (int h = 0; h < 4; h++) {
            Vector v = LOAD(cells + 16 * h);
            a[h] = ADD(a[h], PAIRS(LOW(v), x));
            b[h] = ADD(b[h], PAIRS(HIGH(v), x));
        }
    }
    for (int h = 0; h < 4; h++) STORE(sums + 4 * h, ADD(EVEN(a[h], b[h]), ODD(a[h], b[h])));
    for (int r = 0; r < 16; r++) sums[r] -= 128 * row->sums[0];
}

#else

#define VECTORS "none"
#define WIDE

INLINE void ternary_sums(int32_t *sums, const unsigned char *restrict cells, const Row *row, size_t first, size_t groups) {
    const int16_t *restrict x = row->wide + 32 * first;
    int16_t acc[64];
    for (int r = 0; r < 16; r++) sums[r] = 0;
    while (groups) {
        /* A group adds at most 4 * 2 * 127 to each: thirty-two fit into 16 bits. */
        size_t n = groups < 32 ? groups : 32;
        for (int i = 0; i < 64; i++) acc[i] = 0;
        for (size_t g = 0; g < n; g++, cells += 64, x += 32)
            for (int k = 0; k < 64; k += 8)
                for (int i = 0; i < 8; i++) {
                    int v = cells[k + i];
                    int sum = (v & 3) * x[i] + (v >> 2 & 3) * x[8 + i] + (v >> 4 & 3) * x[16 + i] + (v >> 6) * x[24 + i];
                    acc[k + i] = (int16_t)(acc[k + i] + sum);
                }
        for (int r = 0; r < 16; r++) sums[r] += acc[4 * r] + acc[4 * r + 1] + acc[4 * r + 2] + acc[4 * r + 3];
        groups -= n;
    }
}

INLINE void byte_sums(int32_t *sums, const unsigned char *restrict cells, const Row *row, size_t groups) {
    const int16_t *restrict x = row->wide;
    int32_t acc[64] = {0};
    for (size_t k = 0; k < 4 * groups; k++, cells += 64, x += 8)
        for (int i = 0; i < 64; i += 4)
            for (int b = 0; b < 4; b++) acc[i + b] += (cells[i + b] - 128) * x[b];
    for (int r = 0; r < 16; r++) sums[r] = acc[4 * r] + acc[4 * r + 1] + acc[4 * r + 2] + acc[4 * r + 3];
}

#endif

/* x as codes, for matrices whose columns share scales in runs of `segment`. */
static void quantise(Row *row, const float *restrict x, uint32_t inputs, uint32_t segment) {
    float m = largest(x, inputs), by = m > 1e-30f ? 127.0f / m : 0.0f;
    signed char *restrict q = row->q;
    size_t s = 0;
    row->inputs = inputs;
    row->segment = segment;
    row->scale = m / 127.0f;
    if (bits_of(m) >= 0x7f800000u) {
        row->scale = of_bits(0x7fc00000u);
        by = 0.0f;
    }
    for (uint32_t at = 0; at < inputs; at += segment, s++) {
        uint32_t n = segment < inputs - at ? segment : inputs - at;
        int32_t total = 0;
        if (by > 0.0f)
            for (uint32_t i = 0; i < n; i++) {
                int32_t code = (int32_t)(bits_of(x[at + i] * by + ROUND) - bits_of(ROUND));
                total += code;
                q[i] = (signed char)code;
            }
        else memset(q, 0, n);
        for (uint32_t i = n; i % 16; i++) q[i] = 0;
        row->sums[s] = total;
        q += (n + 15) / 16 * 16;
    }
#ifdef WIDE
    for (size_t k = 0, all = (size_t)(q - row->q) / 4; k < all; k++)
        for (size_t i = 0; i < 8; i++) row->wide[8 * k + i] = row->q[4 * k + i % 4];
#endif
}

/* y += (sums - shift) scales, of 16 outputs. */
INLINE void scale_sums(float *restrict y, const int32_t *restrict sums, int32_t shift, const unsigned char *restrict scales) {
#if defined(EIGHT) && defined(LITTLE)
    for (size_t r = 0; r < 16; r += 8) {
        Eight own, by;
        EightInts all;
        memcpy(&own, y + r, 32);
        memcpy(&by, scales + 4 * r, 32);
        memcpy(&all, sums + r, 32);
        own += __builtin_convertvector(all - shift, Eight) * by;
        memcpy(y + r, &own, 32);
    }
#else
    for (size_t r = 0; r < 16; r++) y[r] += (float)(sums[r] - shift) * getf(scales, r);
#endif
}

/* y (+)= w x, of what the row holds. */
static void multiply(float *restrict y, const Row *row, const Matrix *w, int add) {
    size_t blocks = (w->outputs + 15) / 16, each = (w->segment + 15) / 16;
    for (size_t block = 0; block < blocks; block++) {
        const unsigned char *cells = w->cells + block * w->groups * (w->bytes ? 256 : 64);
        const unsigned char *scales = w->scales + block * w->segments * 64;
        float out[16] = {0};
        int32_t sums[16];
        for (size_t s = 0; s < w->segments; s++, scales += 64) {
            size_t first = s * each, groups = s + 1 < w->segments ? each : w->groups - first;
            if (w->bytes) byte_sums(sums, cells, row, groups);
            else ternary_sums(sums, cells + 64 * first, row, first, groups);
            scale_sums(out, sums, w->bytes ? 0 : row->sums[s], scales);
        }
        for (int r = 0; r < 16; r++) out[r] *= row->scale;
        float *to = y + 16 * block;
        if (16 * block + 16 <= w->outputs) {
            if (add) for (int r = 0; r < 16; r++) to[r] += out[r];
            else for (int r = 0; r < 16; r++) to[r] = out[r];
        } else for (size_t r = 0; 16 * block + r < w->outputs; r++) to[r] = add ? to[r] + out[r] : out[r];
    }
}
