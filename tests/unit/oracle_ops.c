#include "tests/unit/oracle_ops.h"

#include "tests/unit/oracle_lab.h"

double oracle_derivative(double (*loss)(void *context), void *context, double *x)
{
    double keep = *x, h = 1e-3 * fmax(1, fabs(keep)), value[4];
    static const double step[4] = {-2, -1, 1, 2};
    for (int i = 0; i < 4; i++) {
        *x = keep + step[i] * h;
        value[i] = loss(context);
    }
    *x = keep;
    return (8 * (value[2] - value[1]) - (value[3] - value[0])) / (12 * h);
}

void oracle_matmul(double *c, double *size, const double *a, bool transpose_a, const double *b,
                   bool transpose_b, int64_t m, int64_t n, int64_t k)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0, absolute = 0;
            for (int64_t t = 0; t < k; t++) {
                double term =
                    (transpose_a ? a[t * m + i] : a[i * k + t]) * (transpose_b ? b[j * k + t] : b[t * n + j]);
                sum += term;
                absolute += fabs(term);
            }
            c[i * n + j] = sum;
            size[i * n + j] = absolute;
        }
}

void oracle_rmsnorm(double *y, double *sum, const double *x, const double *r, const double *weight,
                    int64_t rows, int64_t cols, double epsilon)
{
    for (int64_t n = 0; n < rows; n++) {
        double square = 0;
        for (int64_t c = 0; c < cols; c++) {
            double value = x[n * cols + c] + (r ? r[n * cols + c] : 0);
            y[n * cols + c] = value;
            if (sum) sum[n * cols + c] = value;
            square += value * value;
        }
        for (int64_t c = 0; c < cols; c++)
            y[n * cols + c] *= weight[c] / sqrt(square / (double)cols + epsilon);
    }
}

void oracle_rope(double *x, int64_t rows, int64_t heads, int64_t head_size, const int64_t *position,
                 const double *table, bool inverse)
{
    int64_t half = head_size / 2;
    for (int64_t n = 0; n < rows; n++)
        for (int64_t h = 0; h < heads; h++)
            for (int64_t j = 0; j < half; j++) {
                double *first = x + (n * heads + h) * head_size + j, *second = first + half;
                double cosine = table[position[n] * head_size + j];
                double sine = table[position[n] * head_size + half + j] * (inverse ? -1 : 1);
                double a = *first, b = *second;
                *first = a * cosine - b * sine;
                *second = b * cosine + a * sine;
            }
}

void oracle_swiglu(double *y, const double *gate_up, int64_t rows, int64_t hidden)
{
    for (int64_t n = 0; n < rows; n++)
        for (int64_t f = 0; f < hidden; f++) {
            double g = gate_up[n * 2 * hidden + f], u = gate_up[n * 2 * hidden + hidden + f];
            y[n * hidden + f] = g / (1 + exp(-g)) * u;
        }
}

/* Bounds, with u = LAB_UNIT and d_v = z_v - m. Rounding d_v moves exp(d_v) by u |d_v|; the exponential itself
 * is good to a few u; a sum of V terms is good to V u whatever its order, and running maxima multiply it once
 * more per new maximum, of which there are at most V: s1 is within e1 = (2V + 32) u + u sum p |d|. Beyond a
 * thousand terms roundings are as good as random: 6 sqrt(V) for V, see test_ops_linear.c. The rest follows
 * from the lines of algebra in kernels/ops.h by adding one rounding of each intermediate. */
void oracle_head_statistics(double *statistics, double *bound, const double *logits, const int64_t *target,
                            int64_t tokens, int64_t vocabulary)
{
    double u = LAB_UNIT, terms = (double)vocabulary, count = terms <= 1000 ? terms : 6 * sqrt(terms);
    for (int64_t t = 0; t < tokens; t++) {
        const double *z = logits + t * vocabulary;
        double m = -(double)INFINITY, s1 = 0, s2 = 0, t1 = 0, squares = 0, mean = 0, size = 0, s2_terms = 0;
        for (int64_t v = 0; v < vocabulary; v++)
            m = fmax(m, z[v]);
        for (int64_t v = 0; v < vocabulary; v++) {
            double d = z[v] - m, e = exp(d);
            s1 += e;
            s2 += e * e;
            t1 += d * e;
            squares += d * d * e;
            s2_terms += -d * e * e;
            mean += z[v] / terms;
            size += fabs(z[v]) / terms;
        }
        double zy = z[target[t]], entropy = log(s1) - t1 / s1, *s = statistics + t * HEAD_STATISTICS;
        s[HEAD_MAXIMUM] = m;
        s[HEAD_LOG_SUM] = log(s1);
        s[HEAD_LOGP] = zy - m - log(s1);
        s[HEAD_LOG_SQUARE] = log(s2) - 2 * log(s1);
        s[HEAD_ENTROPY] = entropy;
        s[HEAD_MEAN] = mean;
        s[HEAD_HIT] = zy == m ? 1 : 0;
        s[HEAD_SPARE] = 0;
        if (!bound) continue;
        double e1 = (2 * count + 32) * u - u * t1 / s1, *b = bound + t * HEAD_STATISTICS;
        b[HEAD_MAXIMUM] = 0;
        b[HEAD_LOG_SUM] = e1 + 2 * u * log(s1);
        b[HEAD_LOGP] = b[HEAD_LOG_SUM] + 2 * u * (m - zy + log(s1));
        b[HEAD_LOG_SQUARE] =
            2 * b[HEAD_LOG_SUM] + (2 * count + 32) * u + 2 * u * s2_terms / s2 + 6 * u * log(s1);
        b[HEAD_ENTROPY] = b[HEAD_LOG_SUM] + (2 * e1 + 8 * u) * -t1 / s1 + u * squares / s1 + 2 * u * entropy;
        b[HEAD_MEAN] = (count + 4) * u * size;
        b[HEAD_HIT] = b[HEAD_SPARE] = 0;
    }
}

void oracle_adamw(double *parameter, double *moment, double *variance, double *size, const double *gradient,
                  int64_t count, bool decay, const struct adamw *settings, double norm)
{
    double first = settings->beta_first, second = settings->beta_second;
    double first_bias = 1 - pow(first, (double)settings->step),
           second_bias = 1 - pow(second, (double)settings->step);
    double scale =
        settings->max_norm > 0 && norm > settings->max_norm ? settings->max_norm / (norm + 1e-6) : 1;
    for (int64_t i = 0; i < count; i++) {
        double g = gradient[i] * scale, p = parameter[i];
        moment[i] = first * moment[i] + (1 - first) * g;
        size[i] = first * size[i] + (1 - first) * fabs(g);
        variance[i] = second * variance[i] + (1 - second) * g * g;
        if (decay) parameter[i] -= settings->rate * settings->weight_decay * p;
        parameter[i] -=
            settings->rate * (moment[i] / first_bias) / (sqrt(variance[i] / second_bias) + settings->epsilon);
    }
}
