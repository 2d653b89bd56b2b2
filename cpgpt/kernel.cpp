// The modern transformer's forward pass on a CPU, in one function: what model.py does for one new token of one stream or for many
// tokens of many streams, without the cost of a hundred small PyTorch calls. `kernel.py` builds it and calls it.
//
// Each number of the result is added up in one order, whatever else is in the pass and however many threads share it. So a stream's
// logits are the same, bit for bit, alone and in a batch, token by token and in a row. Weights are read as halves where they are
// halves exactly (most of the time goes into reading them) and every sum is in float32; keys and values are kept as halves.
//
// C width of the model (n_embd), H of the feed-forward (n_hidden), nh heads of size hs, V ids. Matrices are packed in panels of 16
// outputs, [outputs / 16][inputs][16], so that one vector holds what one input gives to 16 outputs.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include <sched.h>
#include <unistd.h>

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

constexpr int LANES = 16;
typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef _Float16 half;

// Rows and panels of a tile, and sums of the attention: as many as fit into the registers.
#if defined(__AVX512F__)
constexpr int ROWS = 6, FEW_ROWS = 3, PANELS = 4, PANELS_FOR_FEW = 8, ATTENTION_SUMS = 16;
#else
constexpr int ROWS = 3, FEW_ROWS = 1, PANELS = 2, PANELS_FOR_FEW = 4, ATTENTION_SUMS = 4;
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

// The outputs of the panels from `p` to before `last`, of `outputs` in all.
template <typename W>
void multiply(const float* x, int n, int K, const void* packed, float* y, int outputs, int p, int last, bool add) {
    const W* w = (const W*)packed;
    auto at = [&](int panel) { return w + (size_t)panel * K * LANES; };
    if (n <= FEW_ROWS)
        for (; p + PANELS_FOR_FEW <= last; p += PANELS_FOR_FEW)
            tiles<W, PANELS_FOR_FEW>(x, n, K, at(p), y + p * LANES, outputs, add);
    for (; p + PANELS <= last; p += PANELS) tiles<W, PANELS>(x, n, K, at(p), y + p * LANES, outputs, add);
    for (; p < last; p++) tiles<W, 1>(x, n, K, at(p), y + p * LANES, outputs, add);
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

// One head of R tokens of one stream, which follow each other: softmax(q K / sqrt(hs)) V for each over positions 0 to its own. `q` and
// `y` are the first token's, the next ones' lie `q_step` and `y_step` further on; `scores` has room for `capacity` of each.
template <int HS, int R>
void attend(const float* q, int q_step, const half* keys, const half* values, int position, float* scores, int capacity, float* y,
            int y_step) {
    const int S = position + R, blocks = (S + LANES - 1) / LANES;  // as far as the last token looks
    const float scale = 1.f / std::sqrt((float)HS);
    int b = 0;
    auto score = [&](auto count) {
        constexpr int N = count.value;
        vec sums[R][N] = {};
        for (int d = 0; d < HS; d++)
            for (int i = 0; i < N; i++) {
                vec key = load(keys + ((size_t)(b + i) * HS + d) * LANES);
                for (int r = 0; r < R; r++) sums[r][i] += q[r * q_step + d] * key;
            }
        for (int r = 0; r < R; r++)
            for (int i = 0; i < N; i++) store(scores + r * capacity + (b + i) * LANES, sums[r][i] * scale);
        b += N;
    };
    while (b + 4 <= blocks) score(std::integral_constant<int, 4>{});
    while (b < blocks) score(std::integral_constant<int, 1>{});

    float whole[R];
    for (int r = 0; r < R; r++) {
        float* mine = scores + r * capacity;
        const int own = position + r + 1, own_blocks = (own + LANES - 1) / LANES;
        for (int s = own; s < own_blocks * LANES; s++) mine[s] = -INFINITY;  // later than this token
        vec top = load(mine);
        for (b = 1; b < own_blocks; b++) top = larger(top, load(mine + b * LANES));
        const float most = greatest(top);
        vec total{};
        for (b = 0; b < own_blocks; b++) {
            vec score = load(mine + b * LANES);
            vec weight = score > -INFINITY ? exponential(score - most) : vec{};
            total += weight;
            store(mine + b * LANES, weight);
        }
        for (int s = own_blocks * LANES; s < S; s++) mine[s] = 0.f;
        whole[r] = sum(total);
    }
    vec sums[R][HS / LANES] = {};
    for (int s = 0; s < S; s++)
        for (int i = 0; i < HS / LANES; i++) {
            vec value = load(values + (size_t)s * HS + i * LANES);
            for (int r = 0; r < R; r++) sums[r][i] += scores[r * capacity + s] * value;
        }
    for (int r = 0; r < R; r++)
        for (int i = 0; i < HS / LANES; i++) store(y + r * y_step + i * LANES, sums[r][i] * (1.f / whole[r]));
}

constexpr int MOST_QUERIES = 4;

// One head of `n` tokens of one stream, a few at a time.
template <int HS>
void attend_all(int n, const float* q, int q_step, const half* keys, const half* values, int position, float* scores, int capacity,
                float* y, int y_step) {
    constexpr int MOST = std::clamp(ATTENTION_SUMS / (HS / LANES), 1, MOST_QUERIES);
    for (int r = 0; r < n;) {
        auto some = [&](auto count) {
            attend<HS, count.value>(q + r * q_step, q_step, keys, values, position + r, scores, capacity, y + r * y_step, y_step);
            r += count.value;
        };
        switch (std::min(n - r, MOST)) {
            case 1: some(std::integral_constant<int, 1>{}); break;
            case 2: some(std::integral_constant<int, std::min(2, MOST)>{}); break;
            case 3: some(std::integral_constant<int, std::min(3, MOST)>{}); break;
            default: some(std::integral_constant<int, MOST>{});
        }
    }
}

auto attention_for(int hs) {
    switch (hs) {
        case 16: return attend_all<16>;
        case 32: return attend_all<32>;
        case 48: return attend_all<48>;
        case 64: return attend_all<64>;
        case 96: return attend_all<96>;
        default: return attend_all<128>;
    }
}

// Threads that share a pass: each does its part of every layer, and they meet where one needs what another has done.
class Team {
  public:
    explicit Team(int size) : size(size), owner(getpid()) {
        for (int t = 1; t < size; t++) std::thread([this, t] { work(t); }).detach();
    }

    // Run `job(t)` for t from 0 to size - 1, each in a thread of its own.
    void run(const std::function<void(int)>& job) {
        {
            std::lock_guard<std::mutex> hold(mutex);
            this->job = &job;
            number.fetch_add(1, std::memory_order_release);
        }
        started.notify_all();
        job(0);
        meet();
    }

    void meet() {
        const int round = rounds.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
            arrived.store(0, std::memory_order_relaxed);
            rounds.fetch_add(1, std::memory_order_release);
            return;
        }
        for (int turns = 0; rounds.load(std::memory_order_acquire) == round; turns++) pause(turns);
    }

    const int size;
    const pid_t owner;  // a forked child has no threads of its parent's
    std::mutex busy;

  private:
    void work(int t) {
        for (int seen = 0;;) {
            // The next pass of a stream comes soon: wait awake for a moment, then asleep.
            for (int turns = 0; number.load(std::memory_order_acquire) == seen && turns < AWAKE; turns++) pause(turns);
            if (number.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> hold(mutex);
                started.wait(hold, [&] { return number.load() != seen; });
            }
            seen = number.load(std::memory_order_acquire);
            (*job)(t);
            meet();
        }
    }

    // A few microseconds on the processor, which is mostly enough. Where there are fewer free processors than threads, whoever is
    // waited for may need this one: it is offered.
    static void pause(int turns) {
        if (turns > PATIENCE) sched_yield();
#if defined(__x86_64__)
        else __builtin_ia32_pause();
#endif
    }

    static constexpr int PATIENCE = 64, AWAKE = 2000;
    std::atomic<int> number{0}, rounds{0}, arrived{0};
    const std::function<void(int)>* job = nullptr;
    std::mutex mutex;
    std::condition_variable started;
};

// What the threads share in a pass, and what each has for itself.
struct Scratch {
    std::vector<float> x, qkv, y, gate_up, hidden, logits;
    std::vector<std::vector<float>> normed, scores;

    Scratch(const Model& m, size_t rows, int threads) : normed(threads), scores(threads) {
        x.resize(rows * m.n_embd), qkv.resize(rows * 3 * m.n_embd), y.resize(rows * m.n_embd);
        gate_up.resize(rows * 2 * m.n_hidden), hidden.resize(rows * m.n_hidden);
        logits.resize(rows * ((m.vocab_size + LANES - 1) / LANES * LANES));
        for (auto& each : normed) each.resize(rows * m.n_embd);
        for (auto& each : scores) each.resize((size_t)MOST_QUERIES * m.capacity);
    }
};

// The part that thread `t` has in taking `n` rows through the model. It does a share of the heads, then of the outputs of each matrix.
template <typename W>
void chunk(const Model& m, int n, const int32_t* ids, const int32_t* places, const int32_t* positions, float* logits, Scratch& s,
           Team& team, int t) {
    const int C = m.n_embd, H = m.n_hidden, nh = m.n_head, hs = C / nh;
    const int padded = (m.vocab_size + LANES - 1) / LANES * LANES;
    const size_t per_head = (size_t)m.capacity * hs;
    float *x = s.x.data(), *normed = s.normed[t].data(), *qkv = s.qkv.data(), *y = s.y.data();
    const auto attention = attention_for(hs);
    auto share = [&](int whole, int part) { return whole * part / team.size; };
    const int first_head = share(nh, t), last_head = share(nh, t + 1);
    auto norm_all = [&](const float* weight) {
        for (int r = 0; r < n; r++) rms_norm(x + (size_t)r * C, weight, normed + (size_t)r * C, C, m.norm_eps);
    };
    auto outputs = [&](const float* from, int K, const void* matrix, float* to, int count, bool add) {
        multiply<W>(from, n, K, matrix, to, count, share(count / LANES, t), share(count / LANES, t + 1), add);
    };

    for (int r = share(n, t); r < share(n, t + 1); r++) std::memcpy(x + (size_t)r * C, m.embedding + (size_t)ids[r] * C, 4 * C);
    team.meet();
    for (int l = 0; l < m.n_layer; l++) {
        const Layer& layer = m.layers[l];
        norm_all(layer.attention_norm);
        for (int part = 0; part < 3; part++)  // queries, keys, values of this thread's heads
            multiply<W>(normed, n, C, layer.qkv, qkv, 3 * C, (part * C + first_head * hs) / LANES, (part * C + last_head * hs) / LANES,
                        false);
        auto pool = [&](int r, int h) { return (((size_t)l * m.places + places[r]) * nh + h) * per_head; };
        for (int r = 0; r < n; r++) {
            const float* cos = m.cos + (size_t)positions[r] * hs / 2;
            const float* sin = m.sin + (size_t)positions[r] * hs / 2;
            for (int h = first_head; h < last_head; h++) {
                float *q = qkv + (size_t)r * 3 * C + h * hs, *k = q + C, *v = k + C;
                rms_norm(q, layer.q_norm, q, hs, m.norm_eps);
                rms_norm(k, layer.k_norm, k, hs, m.norm_eps);
                rotate(q, cos, sin, hs / 2);
                rotate(k, cos, sin, hs / 2);
                half* key = m.keys + pool(r, h) + (size_t)(positions[r] / LANES) * hs * LANES + positions[r] % LANES;
                half* value = m.values + pool(r, h) + (size_t)positions[r] * hs;
                for (int d = 0; d < hs; d++) key[d * LANES] = (half)k[d];
                for (int d = 0; d < hs; d++) value[d] = (half)v[d];
            }
        }
        for (int r = 0, last; r < n; r = last) {  // the rows of one stream follow each other
            for (last = r + 1; last < n && places[last] == places[r];) last++;
            for (int h = first_head; h < last_head; h++)
                attention(last - r, qkv + (size_t)r * 3 * C + h * hs, 3 * C, m.keys + pool(r, h), m.values + pool(r, h), positions[r],
                          s.scores[t].data(), m.capacity, y + (size_t)r * C + h * hs, C);
        }
        team.meet();
        outputs(y, C, layer.out, x, C, true);
        team.meet();

        norm_all(layer.feed_forward_norm);
        const int first = share(H / LANES, t), last = share(H / LANES, t + 1);
        multiply<W>(normed, n, C, layer.gate_up, s.gate_up.data(), 2 * H, first, last, false);
        multiply<W>(normed, n, C, layer.gate_up, s.gate_up.data(), 2 * H, H / LANES + first, H / LANES + last, false);
        for (int r = 0; r < n; r++)
            for (int i = first * LANES; i < last * LANES; i += LANES) {
                vec gate = load(&s.gate_up[(size_t)r * 2 * H + i]), up = load(&s.gate_up[(size_t)r * 2 * H + H + i]);
                store(&s.hidden[(size_t)r * H + i], gate / (1.f + exponential(-gate)) * up);
            }
        team.meet();
        outputs(s.hidden.data(), H, layer.down, x, C, true);
        team.meet();
    }
    norm_all(m.norm);
    outputs(normed, C, m.head, s.logits.data(), padded, false);
    team.meet();
    for (int r = share(n, t); r < share(n, t + 1); r++)
        std::memcpy(logits + (size_t)r * m.vocab_size, &s.logits[(size_t)r * padded], 4 * m.vocab_size);
}

}  // namespace

extern "C" {

// Threads for `forward`; they live as long as the process.
Team* make_team(int32_t size) { return new Team(size); }

// Logits (n, V) of what follows each of n tokens: ids[r] is read at positions[r] of the stream at places[r]. The rows of one stream
// follow each other in the order of their positions, and what lies before the first of them was read in earlier calls.
void forward(const Model* m, Team* team, int32_t n, const int32_t* ids, const int32_t* places, const int32_t* positions, float* logits) {
    static Team alone(1);
    std::unique_lock<std::mutex> hold(team->busy, std::try_to_lock);
    const bool together = hold.owns_lock() && team->owner == getpid();  // else another model's pass has the threads
    Team& with = together ? *team : alone;
    Scratch s(*m, std::min(n, CHUNK), with.size);
    auto run = m->weights_are_halves ? chunk<half> : chunk<float>;
    std::function<void(int)> job = [&](int t) {
        for (int at = 0; at < n; at += CHUNK)
            run(*m, std::min(CHUNK, n - at), ids + at, places + at, positions + at, logits + (size_t)at * m->vocab_size, s, with, t);
    };
    if (together)
        with.run(job);
    else
        job(0);
}
}
