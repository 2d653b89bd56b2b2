// The modern transformer's forward pass on a CPU, in one function: what model.py does for one new token of one stream or for many
// tokens of many streams, without the cost of a hundred small PyTorch calls. `kernel.py` builds it and calls it.
//
// Each number of the result is added up in one order, whatever else is in the pass. So a stream's logits are the same, bit for
// bit, alone and in a batch, token by token and in a row. Weights are read as halves where they are halves exactly (most of the
// time goes into reading them) and every sum is in float32; keys and values are kept as halves.
//
// C width of the model (n_embd), H of the feed-forward (n_hidden), nh heads of size hs, V ids. Matrices are packed in panels of 16
// outputs, [outputs / 16][inputs][16], so that one vector holds what one input gives to 16 outputs.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef _Float16 half;

// Rows and panels of a tile: as many sums as fit into the registers.
#if defined(__AVX512F__)
constexpr int ROWS = 6, FEW_ROWS = 3, PANELS = 4, PANELS_FOR_FEW = 8;
#else
constexpr int ROWS = 3, FEW_ROWS = 1, PANELS = 2, PANELS_FOR_FEW = 4;
#endif
constexpr int CHUNK = 96;  // rows that go through the layers together: their activations stay in the cache

inline vec load(const float* p) {
    vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline vec load(const half* p) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
    union { __m256 halves[2]; vec v; } u;
    u.halves[0] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
    u.halves[1] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)));
    return u.v;
#else
    vec v;
    for (int i = 0; i < LANES; i++) v[i] = (float)p[i];
    return v;
#endif
}

inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }

inline vec all(float x) { return vec{} + x; }

inline float sum(vec v) {
    float s[LANES];
    store(s, v);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) s[i] += s[i + n];
    return s[0];
}

inline float greatest(vec v) {
    float m = v[0];
    for (int i = 1; i < LANES; i++) m = std::max(m, (float)v[i]);
    return m;
}

inline vec larger(vec a, vec b) { return a > b ? a : b; }

// e^x to the last digit or two: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes, expf).
inline vec exponential(vec x) {
    x = larger(x, all(-87.f));
    x = x > 88.f ? all(88.f) : x;
    ivec n = __builtin_convertvector(x * 1.44269504f + (x < 0.f ? all(-.5f) : all(.5f)), ivec);
    vec f = __builtin_convertvector(n, vec);
    vec r = x - f * 0.693359375f + f * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.f;
    ivec scale = (n + 127) << 23;
    vec power;
    std::memcpy(&power, &scale, sizeof power);
    return p * power;
}

}  // namespace

extern "C" {

struct Layer {
    const void *qkv, *out, *gate_up, *down;  // packed
    const float *attention_norm, *q_norm, *k_norm, *feed_forward_norm;
};

struct Model {
    int32_t n_layer, n_head, n_embd, n_hidden, vocab_size, block_size;
    int32_t weights_are_halves;
    float norm_eps;
    const float* embedding;  // (V, C)
    const float *cos, *sin;  // (block_size, hs / 2)
    const Layer* layers;
    const float* norm;
    const void* head;  // packed
    half* keys;    // (layer, place, nh, capacity / 16, hs, 16): 16 positions side by side, so that a vector holds 16 scores
    half* values;  // (layer, place, nh, capacity, hs)
    int32_t places, capacity;  // capacity: block_size, rounded up to a multiple of 16
};

}

namespace {

// y (n, outputs) = or += x (n, K) times a packed matrix: R rows and P panels at a time, each sum over K in order.
template <typename W, int R, int P>
void tile(const float* x, int K, const W* w, float* y, int outputs, bool add) {
    vec sums[R][P] = {};
    for (int k = 0; k < K; k++) {
        vec weights[P];
        for (int p = 0; p < P; p++) weights[p] = load(w + ((size_t)p * K + k) * LANES);
        for (int r = 0; r < R; r++) {
            vec input = all(x[(size_t)r * K + k]);
            for (int p = 0; p < P; p++) sums[r][p] += input * weights[p];
        }
    }
    for (int r = 0; r < R; r++)
        for (int p = 0; p < P; p++) {
            float* to = y + (size_t)r * outputs + p * LANES;
            store(to, add ? load(to) + sums[r][p] : sums[r][p]);
        }
}

template <typename W, int P>
void tiles(const float* x, int n, int K, const W* w, float* y, int outputs, bool add) {
    auto some = [&](int r, auto rows) {
        tile<W, rows.value, P>(x + (size_t)r * K, K, w, y + (size_t)r * outputs, outputs, add);
    };
    int r = 0;
    for (; r + ROWS <= n; r += ROWS) some(r, std::integral_constant<int, ROWS>{});
    switch (n - r) {
        case 1: some(r, std::integral_constant<int, 1>{}); break;
        case 2: some(r, std::integral_constant<int, 2>{}); break;
        case 3: some(r, std::integral_constant<int, std::min(3, ROWS)>{}); break;
        case 4: some(r, std::integral_constant<int, std::min(4, ROWS)>{}); break;
        case 5: some(r, std::integral_constant<int, std::min(5, ROWS)>{}); break;
    }
}

template <typename W>
void multiply(const float* x, int n, int K, const void* packed, float* y, int outputs, bool add) {
    const W* w = (const W*)packed;
    int panels = outputs / LANES, p = 0;
    auto at = [&](int panel) { return w + (size_t)panel * K * LANES; };
    if (n <= FEW_ROWS)
        for (; p + PANELS_FOR_FEW <= panels; p += PANELS_FOR_FEW)
            tiles<W, PANELS_FOR_FEW>(x, n, K, at(p), y + p * LANES, outputs, add);
    for (; p + PANELS <= panels; p += PANELS) tiles<W, PANELS>(x, n, K, at(p), y + p * LANES, outputs, add);
    for (; p < panels; p++) tiles<W, 1>(x, n, K, at(p), y + p * LANES, outputs, add);
}

// RMSNorm of `size` numbers: x / sqrt(mean(x^2) + eps) * weight.
void rms_norm(const float* x, const float* weight, float* y, int size, float eps) {
    vec squares{};
    for (int i = 0; i < size; i += LANES) squares += load(x + i) * load(x + i);
    float scale = 1.f / std::sqrt(sum(squares) / size + eps);
    for (int i = 0; i < size; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
}

// Turn each pair (x[i], x[i + hs / 2]) by the angle of its position.
void rotate(float* x, const float* cos, const float* sin, int half_size) {
    for (int i = 0; i < half_size; i++) {
        float first = x[i], second = x[i + half_size];
        x[i] = first * cos[i] - second * sin[i];
        x[i + half_size] = second * cos[i] + first * sin[i];
    }
}

// One head of one token: softmax(q K / sqrt(hs)) V over positions 0 to `position`.
template <int HS>
void attend(const float* q, const half* keys, const half* values, int position, float* scores, float* y) {
    const int S = position + 1, blocks = (S + LANES - 1) / LANES;
    const float scale = 1.f / std::sqrt((float)HS);
    constexpr int AT_ONCE = 4;
    int b = 0;
    auto score = [&](auto count) {
        constexpr int N = count.value;
        vec sums[N] = {};
        for (int d = 0; d < HS; d++)
            for (int i = 0; i < N; i++) sums[i] += q[d] * load(keys + ((size_t)(b + i) * HS + d) * LANES);
        for (int i = 0; i < N; i++) store(scores + (b + i) * LANES, sums[i] * scale);
        b += N;
    };
    while (b + AT_ONCE <= blocks) score(std::integral_constant<int, AT_ONCE>{});
    while (b < blocks) score(std::integral_constant<int, 1>{});
    for (int s = S; s < blocks * LANES; s++) scores[s] = -INFINITY;  // not written yet

    vec top = load(scores);
    for (b = 1; b < blocks; b++) top = larger(top, load(scores + b * LANES));
    const float most = greatest(top);
    vec total{};
    for (b = 0; b < blocks; b++) {
        vec score = load(scores + b * LANES);
        vec weight = score > -INFINITY ? exponential(score - most) : vec{};
        total += weight;
        store(scores + b * LANES, weight);
    }
    vec sums[HS / LANES] = {};
    for (int s = 0; s < S; s++)
        for (int i = 0; i < HS / LANES; i++) sums[i] += scores[s] * load(values + (size_t)s * HS + i * LANES);
    const float whole = 1.f / sum(total);
    for (int i = 0; i < HS / LANES; i++) store(y + i * LANES, sums[i] * whole);
}

void attend(int hs, const float* q, const half* keys, const half* values, int position, float* scores, float* y) {
    switch (hs) {
        case 16: return attend<16>(q, keys, values, position, scores, y);
        case 32: return attend<32>(q, keys, values, position, scores, y);
        case 48: return attend<48>(q, keys, values, position, scores, y);
        case 64: return attend<64>(q, keys, values, position, scores, y);
        case 96: return attend<96>(q, keys, values, position, scores, y);
        case 128: return attend<128>(q, keys, values, position, scores, y);
    }
}

struct Scratch {
    std::vector<float> x, normed, qkv, y, gate_up, hidden, scores, logits;
};

template <typename W>
void chunk(const Model& m, int n, const int32_t* ids, const int32_t* places, const int32_t* positions, float* logits, Scratch& s) {
    const int C = m.n_embd, H = m.n_hidden, nh = m.n_head, hs = C / nh;
    const int padded = (m.vocab_size + LANES - 1) / LANES * LANES;
    const size_t per_head = (size_t)m.capacity * hs;
    float *x = s.x.data(), *normed = s.normed.data(), *qkv = s.qkv.data(), *y = s.y.data();
    for (int r = 0; r < n; r++) std::memcpy(x + (size_t)r * C, m.embedding + (size_t)ids[r] * C, 4 * C);

    for (int l = 0; l < m.n_layer; l++) {
        const Layer& layer = m.layers[l];
        for (int r = 0; r < n; r++) rms_norm(x + (size_t)r * C, layer.attention_norm, normed + (size_t)r * C, C, m.norm_eps);
        multiply<W>(normed, n, C, layer.qkv, qkv, 3 * C, false);
        auto heads = [&](int r, int h) { return (((size_t)l * m.places + places[r]) * nh + h) * per_head; };
        for (int r = 0; r < n; r++) {
            const float* cos = m.cos + (size_t)positions[r] * hs / 2;
            const float* sin = m.sin + (size_t)positions[r] * hs / 2;
            for (int h = 0; h < nh; h++) {
                float *q = qkv + (size_t)r * 3 * C + h * hs, *k = q + C, *v = k + C;
                rms_norm(q, layer.q_norm, q, hs, m.norm_eps);
                rms_norm(k, layer.k_norm, k, hs, m.norm_eps);
                rotate(q, cos, sin, hs / 2);
                rotate(k, cos, sin, hs / 2);
                half* key = m.keys + heads(r, h) + (size_t)(positions[r] / LANES) * hs * LANES + positions[r] % LANES;
                half* value = m.values + heads(r, h) + (size_t)positions[r] * hs;
                for (int d = 0; d < hs; d++) key[d * LANES] = (half)k[d];
                for (int d = 0; d < hs; d++) value[d] = (half)v[d];
            }
        }
        // The rows of one stream follow each other: its keys and values, read for the first, are near for the rest.
        for (int first = 0, last; first < n; first = last) {
            for (last = first + 1; last < n && places[last] == places[first];) last++;
            for (int h = 0; h < nh; h++)
                for (int r = first; r < last; r++)
                    attend(hs, qkv + (size_t)r * 3 * C + h * hs, m.keys + heads(r, h), m.values + heads(r, h), positions[r],
                           s.scores.data(), y + (size_t)r * C + h * hs);
        }
        multiply<W>(y, n, C, layer.out, x, C, true);

        for (int r = 0; r < n; r++) rms_norm(x + (size_t)r * C, layer.feed_forward_norm, normed + (size_t)r * C, C, m.norm_eps);
        multiply<W>(normed, n, C, layer.gate_up, s.gate_up.data(), 2 * H, false);
        for (int r = 0; r < n; r++)
            for (int i = 0; i < H; i += LANES) {
                vec gate = load(&s.gate_up[(size_t)r * 2 * H + i]), up = load(&s.gate_up[(size_t)r * 2 * H + H + i]);
                store(&s.hidden[(size_t)r * H + i], gate / (1.f + exponential(-gate)) * up);
            }
        multiply<W>(s.hidden.data(), n, H, layer.down, x, C, true);
    }
    for (int r = 0; r < n; r++) rms_norm(x + (size_t)r * C, m.norm, normed + (size_t)r * C, C, m.norm_eps);
    multiply<W>(normed, n, C, m.head, s.logits.data(), padded, false);
    for (int r = 0; r < n; r++) std::memcpy(logits + (size_t)r * m.vocab_size, &s.logits[(size_t)r * padded], 4 * m.vocab_size);
}

}  // namespace

extern "C" {

// Logits (n, V) of what follows each of n tokens: ids[r] is read at positions[r] of the stream at places[r]. The rows of one stream
// follow each other in the order of their positions, and what lies before the first of them was read in earlier calls.
void forward(const Model* m, int32_t n, const int32_t* ids, const int32_t* places, const int32_t* positions, float* logits) {
    const size_t rows = std::min(n, CHUNK);
    const size_t padded = (m->vocab_size + LANES - 1) / LANES * LANES;
    thread_local Scratch s;
    s.x.resize(rows * m->n_embd), s.normed.resize(rows * m->n_embd), s.qkv.resize(rows * 3 * m->n_embd);
    s.y.resize(rows * m->n_embd), s.gate_up.resize(rows * 2 * m->n_hidden), s.hidden.resize(rows * m->n_hidden);
    s.scores.resize(m->capacity), s.logits.resize(rows * padded);
    for (int at = 0; at < n; at += CHUNK) {
        int some = std::min(CHUNK, n - at);
        auto run = m->weights_are_halves ? chunk<half> : chunk<float>;
        run(*m, some, ids + at, places + at, positions + at, logits + (size_t)at * m->vocab_size, s);
    }
}
}
