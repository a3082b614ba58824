// Compares the kernels of one instruction set with plain loops, for processors that the tests do not run on.
//
//     check_kernels LIBRARY NAME
//
// Prints what differs; the exit code is 1 then, and 2 where the library has no such kernels.
#include <dlfcn.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

static std::mt19937 source(1);
static int failures = 0, checks = 0;

static std::vector<float> normal(size_t n, float scale = 1, float mean = 0) {
    std::normal_distribution<float> draw(mean, scale);
    std::vector<float> made(n);
    for (float& v : made) v = draw(source);
    return made;
}

static int whole(int least, int most) { return std::uniform_int_distribution<int>(least, most)(source); }

// Most that found may be off, as a share of the largest number; 0: the same bits.
static void compare(const char* what, const std::vector<float>& found, const std::vector<float>& wanted, float most) {
    float largest = 1e-30f, off = 0;
    for (float v : wanted) largest = std::max(largest, std::fabs(v));
    for (size_t i = 0; i < wanted.size(); i++) {
        float d = std::fabs(found[i] - wanted[i]) / largest;
        if (!(d <= off)) off = d;  // so that a NaN stays
    }
    checks++;
    if (off <= most) return;
    failures++;
    std::printf("%s: off by %g of the largest, allowed is %g\n", what, off, most);
}

static float of_bf16(uint16_t v) {
    uint32_t bits = uint32_t(v) << 16;
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

static uint16_t to_bf16(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// A number from its bits as float16 has them, subnormal ones too.
static float of_f16(uint16_t v) {
    int exponent = v >> 10 & 31, digits = v & 1023;
    float size = exponent ? std::ldexp(1024.0f + digits, exponent - 25) : std::ldexp(float(digits), -24);
    return v >> 15 ? -size : size;
}

static double gelu(double x) { return 0.5 * x * (1 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

// A weight with random whole numbers, packed as quantise.py says.
struct Packed {
    std::vector<int> q;  // [n, k]
    std::vector<uint8_t> panels;
    std::vector<int32_t> sum;
    std::vector<float> scale, bias, multiply;
    Weight weight;

    Packed(int n, int k, int bits) {
        int unit = bits == 8 ? 16 : kGroup, padded = (k + unit - 1) / unit * unit, n_panels = (n + 63) / 64;
        int size = bits == 8 ? padded * 64 : (padded / kGroup * (kGroup * 64 + 64) / 2 + 63) / 64 * 64;
        q.resize(n * k);
        panels.resize(n_panels * size);
        sum.resize(n_panels * 64);
        scale = normal(n_panels * 64, 0.01f);
        bias = normal(n_panels * 64);
        multiply = normal(k, 0.1f, 1);
        for (int i = 0; i < n; i++) {
            uint8_t* panel = panels.data() + i / 64 * size;
            int row = i % 64, group_scale = 0;
            // Padded inputs have weights of 0.
            for (int j = 0; j < padded; j++) {
                int value = whole(-127, 127);
                if (bits == 8) {
                    panel[j / 4 * 256 + row * 4 + j % 4] = uint8_t(j < k ? value : 0);
                } else {
                    uint8_t* group = panel + j / kGroup * (kGroup + 1) * 32;
                    if (j % kGroup == 0) {
                        group_scale = whole(1, 15);
                        group[kGroup * 32 + row % 32] |= group_scale << (row < 32 ? 0 : 4);
                    }
                    int code = j < k ? whole(-8, 7) : 0, in = j % kGroup;
                    value = code * group_scale;
                    group[in / 8 * 256 + row * 4 + in % 4] |= (code + 8) << (in % 8 < 4 ? 0 : 4);
                }
                if (j < k) sum[i] += q[i * k + j] = value;
            }
        }
        weight = {multiply.data(), panels.data(), sum.data(), scale.data(), bias.data(), k, n, bits};
    }

    // The same sums and roundings as the kernels are to make: so the result has the same bits.
    std::vector<float> times(const std::vector<float>& x, int m) const {
        int n = weight.n, k = weight.k;
        std::vector<float> y(m * n);
        std::vector<int> a(k);
        for (int r = 0; r < m; r++) {
            float least = 0, most = 0;
            for (int j = 0; j < k; j++) {
                float v = x[r * k + j] * multiply[j];
                least = std::min(least, v);
                most = std::max(most, v);
            }
            float step = std::max((most - least) / 255.0f, 1e-30f), per_step = 1.0f / step;
            int zero = std::clamp(int(std::nearbyint(-least / step)), 0, 255);
            for (int j = 0; j < k; j++) {
                float v = x[r * k + j] * multiply[j];
                a[j] = std::clamp(int(std::nearbyint(v * per_step)) + zero, 0, 255) - zero;
            }
            for (int i = 0; i < n; i++) {
                int total = 0;
                for (int j = 0; j < k; j++) total += a[j] * q[i * k + j];
                y[r * n + i] = std::fma(float(total), scale[i] * step, bias[i]);
            }
        }
        return y;
    }
};

static void check_gemm(const Kernels& kernels) {
    for (int bits : {8, 4})
        for (int n : {1, 63, 64, 100, 192})
            for (int k : {3, 32, 70, 588})
                for (int m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 40}) {
                    char what[99];
                    Packed w(n, k, bits);
                    std::vector<float> x = normal(m * k, 2, 0.5f), wanted = w.times(x, m), found(m * n);
                    std::snprintf(what, sizeof what, "gemm int%d n=%d k=%d m=%d", bits, n, k, m);
                    for (int threads : {1, 3}) {
                        Gemm asked{x.data(), found.data(), m, k, n, 0, threads};
                        std::fill(found.begin(), found.end(), NAN);
                        kernels.gemm(&w.weight, &asked);
                        compare(what, found, wanted, 0);
                    }
                    Gemm asked{x.data(), found.data(), m, k, n, 1, 1};
                    kernels.gemm(&w.weight, &asked);
                    for (float& v : wanted) v = gelu(v);
                    compare("gemm with gelu", found, wanted, 1e-6f);
                }
}

// Steps of 1 from -1.5 to 253.5: the zero becomes 2 and the largest number 256, which is one level too many.
static void check_largest_level(const Kernels& kernels) {
    for (int bits : {8, 4}) {
        Packed w(64, 32, bits);
        std::fill(w.multiply.begin(), w.multiply.end(), 1.0f);
        std::vector<float> x(32, 253.5f), found(64);
        x[0] = -1.5f;
        Gemm asked{x.data(), found.data(), 1, 32, 64, 0, 1};
        kernels.gemm(&w.weight, &asked);
        compare("gemm of the largest level", found, w.times(x, 1), 0);
    }
}

static void check_dense(const Kernels& kernels) {
    for (int type : {0, 1, 2})
        for (int n : {1, 5, 64, 100})
            for (int k : {3, 32, 70})
                for (int m : {1, 2, 3, 4, 7}) {
                    std::vector<float> x = normal(m * k), w = normal(n * k), bias = normal(n), found(m * n), wanted(m * n);
                    std::vector<uint16_t> half_w(n * k), half_bias(n);
                    auto halve = [&](std::vector<float>& all, std::vector<uint16_t>& halves) {
                        for (size_t i = 0; i < all.size(); i++) {
                            halves[i] = type == 1 ? to_bf16(all[i]) : whole(0, 1) << 15 | whole(0, 0x4000);
                            if (type) all[i] = type == 1 ? of_bf16(halves[i]) : of_f16(halves[i]);
                        }
                    };
                    halve(w, half_w);
                    halve(bias, half_bias);
                    for (int r = 0; r < m; r++)
                        for (int i = 0; i < n; i++) {
                            double sum = bias[i];
                            for (int j = 0; j < k; j++) sum += double(x[r * k + j]) * w[i * k + j];
                            wanted[r * n + i] = sum;
                        }
                    Dense asked{x.data(), type ? (void*)half_w.data() : w.data(),
                                type ? (void*)half_bias.data() : bias.data(), found.data(), m, n, k, k, type, 2};
                    kernels.dense(&asked);
                    compare("dense", found, wanted, 1e-5f);
                }
}

// Attention of q [t, heads, dim], whose rows see the first free + i + 1 of the keys [kv heads, n, dim].
static std::vector<float> attended(const float* q, const std::vector<float>& k, const std::vector<float>& v, int t,
                                   int heads, int kv_heads, int n, int dim, int free, int q_row) {
    std::vector<float> out(t * heads * dim);
    for (int r = 0; r < t; r++)
        for (int h = 0; h < heads; h++) {
            int from = h / (heads / kv_heads) * n * dim, sees = std::min(n, free + r + 1);
            std::vector<double> p(sees), mixed(dim);
            double most = -1e300, total = 0;
            for (int i = 0; i < sees; i++) {
                for (int d = 0; d < dim; d++) p[i] += double(q[r * q_row + h * dim + d]) * k[from + i * dim + d];
                p[i] /= std::sqrt(double(dim));
                most = std::max(most, p[i]);
            }
            for (double& e : p) total += e = std::exp(e - most);
            for (int i = 0; i < sees; i++)
                for (int d = 0; d < dim; d++) mixed[d] += p[i] / total * v[from + i * dim + d];
            for (int d = 0; d < dim; d++) out[(r * heads + h) * dim + d] = mixed[d];
        }
    return out;
}

static void check_decode(const Kernels& kernels) {
    for (int t : {1, 5})
        for (int dim : {16, 64, 80}) {
            int heads = 4, kv_heads = 2, first = 13, second = 9, n = first + second, free = n - t;
            std::vector<float> q = normal(t * heads * dim), k = normal(kv_heads * n * dim), v = normal(kv_heads * n * dim);
            std::vector<uint16_t> k1(kv_heads * first * dim), v1(k1), k2(kv_heads * second * dim), v2(k2);
            for (int h = 0; h < kv_heads; h++)
                for (int i = 0; i < n; i++)
                    for (int d = 0; d < dim; d++) {
                        int from = (h * n + i) * dim + d;
                        int to = ((i < first ? h * first + i : h * second + i - first)) * dim + d;
                        k[from] = of_bf16((i < first ? k1 : k2)[to] = to_bf16(k[from]));
                        v[from] = of_bf16((i < first ? v1 : v2)[to] = to_bf16(v[from]));
                    }
            Segment segments[] = {{k1.data(), v1.data(), first, first * dim}, {k2.data(), v2.data(), second, second * dim}};
            std::vector<float> found(q.size());
            Decode asked{q.data(), found.data(), segments, 2, t, heads, kv_heads, dim, dim, heads * dim, dim, heads * dim,
                         free, 2};
            kernels.decode(&asked);
            compare("decode", found, attended(q.data(), k, v, t, heads, kv_heads, n, dim, free, heads * dim), 1e-5f);
        }
}

static std::vector<float> normed(const std::vector<float>& x, int m, int k, const std::vector<float>& weight,
                                 const std::vector<float>& bias, double eps) {
    std::vector<float> y(x.size());
    for (int r = 0; r < m; r++) {
        double mean = 0, squares = 0;
        for (int i = 0; i < k; i++) mean += x[r * k + i] / k;
        for (int i = 0; i < k; i++) squares += (x[r * k + i] - mean) * (x[r * k + i] - mean) / k;
        for (int i = 0; i < k; i++) y[r * k + i] = (x[r * k + i] - mean) / std::sqrt(squares + eps) * weight[i] + bias[i];
    }
    return y;
}

static std::vector<float> scaled(const std::vector<float>& x, int m, int k, const std::vector<float>& weight,
                                 double eps) {
    std::vector<float> y(x.size());
    for (int r = 0; r < m; r++) {
        double squares = 0;
        for (int i = 0; i < k; i++) squares += static_cast<double>(x[r * k + i]) * x[r * k + i] / k;
        for (int i = 0; i < k; i++) y[r * k + i] = x[r * k + i] / std::sqrt(squares + eps) * weight[i];
    }
    return y;
}

static void turn(float* x, const float* cos, const float* sin, int half) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = a * sin[i] + b * cos[i];
    }
}

static void check_between(const Kernels& kernels) {
    for (int m : {1, 20})
        for (int k : {3, 64, 70}) {
            std::vector<float> x = normal(m * k, 3, 1), weight = normal(k), bias = normal(k), found(x.size());
            Norm asked{x.data(), weight.data(), bias.data(), found.data(), m, k, k, 1e-5f, 2};
            kernels.norm(&asked);
            compare("layer norm", found, normed(x, m, k, weight, bias, 1e-5), 1e-5f);
            asked.bias = nullptr;
            kernels.norm(&asked);
            compare("RMS norm", found, scaled(x, m, k, weight, 1e-5), 1e-5f);

            std::vector<float> a = normal(m * k), b = normal(m * k), two(x.size()), three(x.size());
            for (int i = 0; i < m * k; i++) two[i] = x[i] + a[i], three[i] = x[i] + a[i] + b[i];
            kernels.add(x.data(), a.data(), nullptr, found.data(), m * k, 2);
            compare("add", found, two, 0);
            kernels.add(x.data(), a.data(), b.data(), found.data(), m * k, 2);
            compare("add of three", found, three, 0);

            std::vector<uint16_t> stored(m * k);
            std::vector<float> rounded(m * k);
            for (int i = 0; i < m * k; i++) {
                uint32_t bits;
                std::memcpy(&bits, &x[i], 4);
                bits = (bits & 0xffff0000) | 0x8000;  // half way between two numbers of bfloat16
                if (i % 2) std::memcpy(&x[i], &bits, 4);
                rounded[i] = of_bf16(to_bf16(x[i]));
            }
            Store kept{x.data(), stored.data(), 1, m, k, m * k, k, m * k, k, 1};
            kernels.store(&kept);
            for (int i = 0; i < m * k; i++) found[i] = of_bf16(stored[i]);
            compare("store", found, rounded, 0);

            std::vector<int32_t> words(m * k);
            int64_t total = 0;
            for (int32_t& w : words) total += w = whole(-999, 999);
            int64_t sum = 0;
            kernels.read(words.data(), words.size(), 2, &sum);
            compare("read", {float(sum)}, {float(total)}, 0);
        }
    int rows = 5, heads = 3, dim = 16, half = 4;
    std::vector<float> x = normal(rows * heads * dim), cos = normal(rows * half), sin = normal(rows * half), wanted = x;
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads; h++) turn(&wanted[(r * heads + h) * dim], &cos[r * half], &sin[r * half], half);
    Rotate asked{x.data(), cos.data(), sin.data(), rows, heads, half, heads * dim, dim, 2};
    kernels.rotate(&asked);
    compare("rotate", x, wanted, 1e-6f);
}

// So many keys that no machine has room for their scores: each thread finds that out for itself.
static void check_out_of_memory(const Kernels& kernels) {
    std::vector<float> q = normal(4 * 16), found(q);
    Segment segment{nullptr, nullptr, int64_t(1) << 50, 0};
    Decode asked{q.data(), found.data(), &segment, 1, 1, 4, 1, 16, 16, 16, 16, 16, segment.length, 2};
    compare("memory runs out", {float(kernels.decode(&asked))}, {1}, 0);
    check_decode(kernels);
}

// All queries see all keys, whose heads are some of the queries'.
static void check_attention(const Kernels& kernels) {
    if (!kernels.attention) return;
    for (int t : {1, 7, 32, 70, 129})
        for (int dim : {9, 64, 72, 80})
            for (int bytes : {0, 1}) {
                char what[99];
                int heads = 4, kv_heads = 2;
                std::vector<float> q = normal(t * heads * dim), k = normal(kv_heads * t * dim), v = normal(k.size());
                std::vector<float> found(q.size(), NAN);
                Attention asked{q.data(), k.data(), v.data(), found.data(), 1, heads, kv_heads, t, t, dim,
                                0, dim, heads * dim, 0, t * dim, dim, 0, t * dim, dim, 0, dim, heads * dim, bytes, 2};
                kernels.attention(&asked);
                std::snprintf(what, sizeof what, "attention t=%d dim=%d bytes=%d", t, dim, bytes);
                compare(what, found, attended(q.data(), k, v, t, heads, kv_heads, t, dim, t, heads * dim), 0.02f);
            }
}

// One block over a few positions, or many, of two sequences, the second of which goes on where it was.
static void check_stack(const Kernels& kernels, bool two_norms, int first, int second) {
    int heads = 4, kv_heads = 2, dim = 64, head = dim / heads, ff = 96, half = 4, rows = first + second;
    int counts[] = {first, second}, lengths[] = {0, 2}, capacity = rows + 1, qkv_dim = (heads + 2 * kv_heads) * head;
    Packed qkv(qkv_dim, dim, 8), proj(dim, dim, 4), fc1(ff, dim, 8), fc2(dim, ff, 4);
    std::vector<float> g1 = normal(dim), b1 = normal(dim), g2 = normal(dim), b2 = normal(dim);
    std::vector<float> x = normal(rows * dim), cos = normal(rows * half), sin = normal(rows * half), wanted = x;
    std::vector<uint16_t> keys[2], values[2];
    Place places[2];
    Sequence sequences[2];
    for (int s = 0; s < 2; s++) {
        for (auto* kept : {&keys[s], &values[s]})
            for (float v : normal(kv_heads * capacity * head)) kept->push_back(to_bf16(v));
        places[s] = {keys[s].data(), values[s].data(), lengths[s], capacity};
        sequences[s] = {&places[s], 1, counts[s]};
    }

    std::vector<float> u = normed(x, rows, dim, g1, b1, 1e-5), all = qkv.times(u, rows), mixed(rows * dim);
    for (int r = 0; r < rows; r++)
        for (int h = 0; h < heads + kv_heads; h++)
            turn(&all[r * qkv_dim + h * head], &cos[r * half], &sin[r * half], half);
    for (int s = 0, row = 0; s < 2; row += counts[s++]) {
        int n = lengths[s] + counts[s];
        std::vector<float> k(kv_heads * n * head), v(k);
        for (int h = 0; h < kv_heads; h++)
            for (int i = 0; i < n; i++)
                for (int d = 0; d < head; d++) {
                    int to = (h * n + i) * head + d, old = (h * capacity + i) * head + d;
                    int at = (row + i - lengths[s]) * qkv_dim + (heads + h) * head + d;
                    bool fresh = i >= lengths[s];
                    k[to] = of_bf16(fresh ? to_bf16(all[at]) : keys[s][old]);
                    v[to] = of_bf16(fresh ? to_bf16(all[at + kv_heads * head]) : values[s][old]);
                }
        std::vector<float> part =
            attended(&all[row * qkv_dim], k, v, counts[s], heads, kv_heads, n, head, lengths[s], qkv_dim);
        std::copy(part.begin(), part.end(), mixed.begin() + row * dim);
    }
    std::vector<float> after = proj.times(mixed, rows);
    for (int i = 0; i < rows * dim; i++) wanted[i] += after[i];
    if (two_norms) u = normed(wanted, rows, dim, g2, b2, 1e-5);
    std::vector<float> inner = fc1.times(u, rows);
    for (float& v : inner) v = gelu(v);
    std::vector<float> out = fc2.times(inner, rows);
    for (int i = 0; i < rows * dim; i++) wanted[i] += out[i];

    Layer layer{g1.data(), b1.data(), two_norms ? g2.data() : nullptr, two_norms ? b2.data() : nullptr,
                &qkv.weight, &proj.weight, &fc1.weight, &fc2.weight};
    Stack asked{&layer, x.data(), cos.data(), sin.data(), sequences, 0, 1, 2, dim, heads, kv_heads, ff, half,
                1e-5f, 0, 0, 2};
    kernels.stack(&asked);
    // Sums in another order may turn a level of a quantised row, and attention of many rows be in bfloat16.
    compare("stack", x, wanted, kernels.attention && rows > 32 ? 0.1f : 0.02f);
}

int main(int count, char** args) {
    void* library = count == 3 ? dlopen(args[1], RTLD_NOW) : nullptr;
    auto find = library ? (const Kernels* (*)(const char*))dlsym(library, "galago_kernels") : nullptr;
    const Kernels* kernels = find ? find(args[2]) : nullptr;
    if (!kernels) {
        std::printf("no such kernels\n");
        return 2;
    }
    check_gemm(*kernels);
    check_largest_level(*kernels);
    check_dense(*kernels);
    check_decode(*kernels);
    check_out_of_memory(*kernels);
    check_between(*kernels);
    check_attention(*kernels);
    for (bool two_norms : {false, true}) {
        check_stack(*kernels, two_norms, 4, 3);
        check_stack(*kernels, two_norms, 50, 37);
        check_stack(*kernels, two_norms, 3, 401);
    }
    std::printf("%s: %d of %d checks failed\n", kernels->name, failures, checks);
    return failures != 0;
}
