// The one read of z (StatisticsCall). Bytes: z once, and the pooled map where there is a pool.
#pragma once
#include "cuda/fold_kernel.cuh"

namespace attsnn {

// An item of a plane is, with kPool = 1, kV pixels, or channels-last kV channels of four pixels; with 2, two
// rows of kV pixels, or kV channels of a window; with 0, any pool, one window (kV = 1). Items at the border
// are cut off there; their pixels have no pooled value.
template <class Io, class Real, int kPool, int kV, bool kLast>
struct StatisticsFold {
  static_assert(kPool != 0 || kV == 1);
  static constexpr int kStates = kLast ? kV : 1, kPacks = kPool == 0 ? 1 : kLast ? 4 : kPool;
  static constexpr int kAhead = kPool == 0 ? 1 : 4 / kPacks;
  StatisticsCall<Io, Real> call;

  // `sum` and `square` are of the distances from the plane's first value: nothing cancels, unless that value
  // is further off than double can tell.
  struct State {
    double sum, square, pooled;
    Extremum<Real> extremum;
  };
  struct Raw {
    Pack<Io, kV> packs[kPacks];
  };
  struct Own {
    const Io* z;
    Io* pooled;
    double shift[kStates];
    Real sign[kStates];
    ATTSNN_INLINE Own(const StatisticsFold& fold, int64_t t, int64_t n, int64_t c)
        : z(fold.plane(t, n, c)), pooled(nullptr) {
      if (fold.call.pooled.data != nullptr)
        pooled = fold.call.pooled[t] + fold.call.maps.pooled(fold.call.pool).at(n, c, 0);
#pragma unroll
      for (int j = 0; j < kStates; ++j) {
        shift[j] = double(Real(z[j]));
        sign[j] = fold.sign(c + j);
      }
    }
  };

  ATTSNN_INLINE const Io* plane(int64_t t, int64_t n, int64_t c) const {
    return call.z[t] + call.maps.at(n, c, 0);
  }
  // Minima are maxima of the negated values.
  ATTSNN_INLINE Real sign(int64_t c) const {
    return call.gamma != nullptr && call.gamma[c] < 0 ? Real(-1) : Real(1);
  }
  ATTSNN_INLINE int64_t stride() const { return kLast ? call.maps.channels : 1; }
  ATTSNN_INLINE int pool() const { return kPool > 0 ? kPool : int(call.pool); }
  ATTSNN_INLINE int height() const { return int(call.maps.height); }
  ATTSNN_INLINE int width() const { return int(call.maps.width); }
  ATTSNN_INLINE int columns() const {
    return kPool == 2 && !kLast ? width() / kV : (width() + pool() - 1) / pool();
  }
  ATTSNN_INLINE int items() const {
    if (kPool == 1) return int((call.maps.pixels() + kPacks - 1) / kPacks / (kLast ? 1 : kV));
    return (height() + pool() - 1) / pool() * columns();
  }

  ATTSNN_INLINE void start(State& state) const { state = {0, 0, 0, no_extremum<Real>()}; }
  ATTSNN_INLINE void merge(State& state, const State& other) const {
    state.sum += other.sum;
    state.square += other.square;
    state.pooled += other.pooled;
    state.extremum.meet(other.extremum.value, other.extremum.place);
  }

  // Where pack k of an item lies, as a pixel; -1 where the border cut it off.
  ATTSNN_INLINE int pixel(int item, int k) const {
    if constexpr (kPool == 1) {
      const int at = item * (kLast ? kPacks : kV) + k;
      return at < call.maps.pixels() ? at : -1;
    } else if constexpr (kLast) {
      const int y = item / columns() * 2 + k / 2, x = item % columns() * 2 + k % 2;
      return y < height() && x < width() ? y * width() + x : -1;
    } else {
      const int y = item / columns() * 2 + k;
      return y < height() ? y * width() + item % columns() * kV : -1;
    }
  }

  // What was cut off repeats the first pack, which changes no extremum.
  ATTSNN_INLINE Raw load(const Own& own, int item) const {
    Raw raw{};
    if constexpr (kPool > 0)
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        const int from = pixel(item, k);
        raw.packs[k] = from < 0 ? raw.packs[0] : load_whole<kV>(own.z + from * stride());
      }
    return raw;
  }

  // The first `count` of a few values, in Real around one of them: of so few it loses nothing.
  template <int kCount>
  ATTSNN_INLINE static void moments(State& state, const Real* values, int count, double shift) {
    Real sum = 0, square = 0;
#pragma unroll
    for (int j = 1; j < kCount; ++j) {
      const Real distance = values[j] - values[0];  // 0 where cut off
      sum += distance;
      square += distance * distance;
    }
    const double apart = double(values[0]) - shift, all = count * apart;
    state.sum += all + sum;
    state.square += square + apart * (2 * double(sum) + all);
  }
  ATTSNN_INLINE static void meet_pooled(State& state, Real sign, Io mean, int32_t place) {
    state.pooled += double(Real(mean));
    meet_later(state.extremum, sign * Real(mean), place);
  }

  ATTSNN_INLINE void visit(const Own& own, const Raw& raw, int item, State* states) const {
    if constexpr (kPool == 0)
      visit_window(own, item, states[0]);
    else if constexpr (kLast)
      visit_channels(own, raw, item, states);
    else
      visit_row(own, raw, item, states[0]);
  }

  ATTSNN_INLINE void visit_row(const Own& own, const Raw& raw, int item, State& state) const {
    const int rows = kPool == 1 || pixel(item, kPacks - 1) >= 0 ? kPacks : 1;
    Real values[kPacks][kV];
#pragma unroll
    for (int k = 0; k < kPacks; ++k) {
#pragma unroll
      for (int j = 0; j < kV; ++j) values[k][j] = Real(raw.packs[k][j]);
      if (k < rows) moments<kV>(state, values[k], kV, own.shift[0]);
    }
    if constexpr (kPool == 1) {
#pragma unroll
      for (int j = 0; j < kV; ++j) meet_later(state.extremum, own.sign[0] * values[0][j], item * kV + j);
    } else if (rows == 2) {
      const int first = item / columns() * (width() / 2) + item % columns() * (kV / 2);
      Pack<Io, kV / 2> means;
#pragma unroll
      for (int j = 0; j < kV / 2; ++j) {
        const Real sum =
            Real(0) + values[0][2 * j] + values[0][2 * j + 1] + values[1][2 * j] + values[1][2 * j + 1];
        means[j] = Io(sum / Real(4));
        meet_pooled(state, own.sign[0], means[j], first + j);
      }
      *reinterpret_cast<Pack<Io, kV / 2>*>(own.pooled + first) = means;
    }
  }

  ATTSNN_INLINE void visit_channels(const Own& own, const Raw& raw, int item, State* states) const {
    int count = 0;
#pragma unroll
    for (int k = 0; k < kPacks; ++k) count += pixel(item, k) >= 0;
    const int row = item / columns(), place = row * (width() / 2) + item % columns();
    Pack<Io, kV> means;
#pragma unroll
    for (int j = 0; j < kV; ++j) {
      Real values[kPacks], sum = 0;
#pragma unroll
      for (int k = 0; k < kPacks; ++k) values[k] = Real(raw.packs[k][j]);
      moments<kPacks>(states[j], values, count, own.shift[j]);
#pragma unroll
      for (int k = 0; k < kPacks; ++k) {
        if (kPool == 1) meet_later(states[j].extremum, own.sign[j] * values[k], item * kPacks + k);
        sum += values[k];
      }
      means[j] = Io(sum / Real(4));
      if (kPool == 2 && count == 4) meet_pooled(states[j], own.sign[j], means[j], place);
    }
    if (kPool == 2 && count == 4) *reinterpret_cast<Pack<Io, kV>*>(own.pooled + place * stride()) = means;
  }

  ATTSNN_INLINE void visit_window(const Own& own, int item, State& state) const {
    const int row = item / columns(), column = item % columns(), y0 = row * pool(), x0 = column * pool();
    Real sum = 0;
    for (int y = y0; y < y0 + pool() && y < height(); ++y)
      for (int x = x0; x < x0 + pool() && x < width(); ++x) {
        const Real value = Real(own.z[(int64_t(y) * width() + x) * stride()]);
        moments<1>(state, &value, 1, own.shift[0]);
        sum += value;
      }
    if (y0 + pool() > height() || x0 + pool() > width()) return;
    const int place = row * (width() / pool()) + column;
    const Io mean = Io(sum / Real(pool() * pool()));
    own.pooled[place * stride()] = mean;
    meet_pooled(state, own.sign[0], mean, place);
  }

  ATTSNN_INLINE void finish(const State& state, int64_t t, int64_t n, int64_t c) const {
    const Maps& maps = call.maps;
    const Io* z = plane(t, n, c);
    const int64_t to = maps.plane(t, n, c);
    const double pixels = double(maps.pixels()), mean = double(Real(z[0])) + state.sum / pixels;
    const double moment = state.square - state.sum * (state.sum / pixels);
    call.mean[to] = mean;
    call.moment[to] = moment < 0 ? 0 : moment;
    call.pooled_mean[to] = kPool == 1 ? mean : state.pooled / double(maps.pooled(pool()).pixels());
    if (call.extremum == nullptr) return;
    const bool first = call.gamma != nullptr && call.gamma[c] == 0;
    const Real at_first =
        kPool == 1 ? Real(z[0]) : Real(Io(window_mean<Real>(z, pool(), maps.width * stride(), stride())));
    call.extremum[to] = first ? at_first : sign(c) * state.extremum.value;
    call.place[to] = first ? 0 : state.extremum.place;
  }
};

}  // namespace attsnn
