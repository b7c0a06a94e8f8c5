// The CUDA kernels of a seam but its neurons, run on the host, against plain loops: element-wise results and
// extrema with their places have equal bits, sums agree to rounding. `seam_on_host CASE` runs one named case,
// without a name it lists them.
#include "cuda_on_host.h"  // first: the kernels need its words

#include "cuda/seam_driver.cuh"
#include "seam_inputs.h"

namespace {

using namespace attsnn;

template <class Io, class Real>
void statistics(const Case& c) {
  const Inputs<Io, Real> in(c);
  const Maps maps = c.maps(), pooled = maps.pooled(c.pool);
  const auto z = filled<Io>(c);
  Buffer<Io> p(c.steps * step_size(pooled), c.misaligned, Io(NAN));
  Buffer<double> mean(maps.planes(), false, NAN), moment = mean, pooled_mean = mean;
  Buffer<Real> extremum(maps.planes(), false, Real(NAN));
  Buffer<int32_t> place(maps.planes(), false, -1);
  StatisticsCall<Io, Real> call;
  call.maps = maps;
  call.pool = c.pool;
  call.z = {z.data(), step_size(maps)};
  call.gamma = c.gamma ? in.gamma.data() : nullptr;
  if (c.pool > 1) call.pooled = {p.data(), step_size(pooled)};
  call.mean = mean.data();
  call.moment = moment.data();
  call.pooled_mean = pooled_mean.data();
  if (c.extrema) call.extremum = extremum.data(), call.place = place.data();
  launch_statistics(call, Stream{});

  over_planes(maps, [&](int64_t t, int64_t n, int64_t channel, int64_t plane) {
    const Io* from = z.data() + t * step_size(maps);
    const int64_t stride = maps.at(0, 0, 1);
    double sum = 0, size = 0, square = 0, pooled_sum = 0, pooled_size = 0;
    for (int64_t i = 0; i < maps.pixels(); ++i) {
      const double value = double(Real(from[maps.at(n, channel, i)]));
      sum += value;
      size += std::fabs(value);
    }
    const double wanted = sum / double(maps.pixels());
    for (int64_t i = 0; i < maps.pixels(); ++i) {
      const double distance = double(Real(from[maps.at(n, channel, i)])) - wanted;
      square += distance * distance;
    }
    const Real sign = c.gamma && in.gamma[channel] < 0 ? Real(-1) : Real(1);
    Extremum<Real> most{-Real(INFINITY), std::numeric_limits<int32_t>::max()};
    for (int64_t i = 0; i < pooled.pixels(); ++i) {
      const int64_t corner = i / pooled.width * c.pool * c.width + i % pooled.width * c.pool;
      const Io* first = from + maps.at(n, channel, corner);
      const Io value = c.pool == 1 ? *first : Io(window_mean<Real>(first, c.pool, c.width * stride, stride));
      if (c.pool > 1)
        same("pooled", plane, double(p[t * step_size(pooled) + pooled.at(n, channel, i)]), double(value));
      pooled_sum += double(Real(value));
      pooled_size += std::fabs(double(Real(value)));
      most.meet(sign * Real(value), int32_t(i));
      if (c.extrema && i == 0 && c.gamma && in.gamma[channel] == 0) {
        same("extremum", plane, double(extremum[plane]), double(Real(value)));
        same("place", plane, place[plane], 0);
      }
    }
    if (!c.extrema) same("untouched place", plane, place[plane], -1);
    if (c.extrema && !(c.gamma && in.gamma[channel] == 0)) {
      same("extremum", plane, double(extremum[plane]), double(sign * most.value));
      same("place", plane, place[plane], most.place);
    }
    if (!std::isfinite(sum)) return expect(!std::isfinite(mean[plane]), "mean", plane, mean[plane], wanted);
    const bool exact = sizeof(Real) == sizeof(double);
    const double deviation = std::sqrt(square / double(maps.pixels()));
    close("mean", plane, mean[plane], wanted,
          (exact ? 0 : 1e-7 * deviation) + 1e-13 * size / double(maps.pixels()));
    close("moment", plane, moment[plane], square, (exact ? 1e-12 : 5e-7) * square + 1e-12 * size);
    if (c.pool > 1)
      close("pooled mean", plane, pooled_mean[plane], pooled_sum / double(pooled.pixels()),
            1e-12 * pooled_size / double(pooled.pixels()));
    else
      same("pooled mean", plane, pooled_mean[plane], mean[plane]);
  });
}

// SA's descriptors and the sums of pass B.
template <class Io, class Real>
void sums(const Case& c) {
  const Inputs<Io, Real> in(c);
  const Maps& maps = in.maps;
  const int64_t pixels = c.samples * maps.pixels();
  Buffer<double> projected(maps.planes(), false, NAN);
  Buffer<Real> mean(pixels, false, Real(NAN)), extremum = mean;
  Buffer<int32_t> place(pixels, false, -1);
  const Real* centre = c.norm ? in.centre.data() : nullptr;
  launch_project(ProjectCall<Io, Real>{maps, in.rows(in.p), in.spatial.data(), centre, projected.data()},
                 Stream{});
  launch_squeeze(
      SqueezeCall<Io, Real>{maps, in.rows(in.p), in.affine(), mean.data(), extremum.data(), place.data()},
      Stream{});

  over_planes(maps, [&](int64_t t, int64_t n, int64_t channel, int64_t plane) {
    double all = 0, size = 0;
    for (int64_t i = 0; i < maps.pixels(); ++i) {
      const Real p = Real(in.p[t * step_size(maps) + maps.at(n, channel, i)]);
      const Real term = in.spatial[n * maps.pixels() + i] * (p - (c.norm ? centre[channel] : Real(0)));
      all += double(term), size += std::fabs(double(term));
    }
    close("project", plane, projected[plane], all, 1e-12 * size);
  });
  constexpr double kRound = std::numeric_limits<Real>::epsilon();
  for (int64_t at = 0; at < pixels; ++at) {
    const int64_t n = at / maps.pixels(), pixel = at % maps.pixels();
    double all = 0, size = 0;
    Extremum<Real> most{-Real(INFINITY), std::numeric_limits<int32_t>::max()};
    for (int64_t t = 0; t < c.steps; ++t)
      for (int64_t channel = 0; channel < c.channels; ++channel) {
        const Real gated = in.gated(t, n, channel, pixel);
        all += double(gated), size += std::fabs(double(gated));
        most.meet(gated, int32_t(t * c.channels + channel));
      }
    const double count = double(c.steps * c.channels);
    close("squeeze", at, mean[at], all / count, kRound * std::fabs(all / count) + 1e-12 * size / count);
    same("squeezed extremum", at, extremum[at], most.value);
    same("squeezed place", at, place[at], most.place);
  }
}

template <class Io, class Real>
void grad(const Case& c) {
  const Inputs<Io, Real> in(c);
  const Maps maps = c.maps();
  const auto z = c.pool == 1 ? in.p : normal<Io>(c.steps * step_size(maps), 20, c.misaligned);
  Buffer<Io> grad_z(z.size(), c.misaligned, Io(NAN));
  GradCall<Io, Real> call;
  call.maps = maps;
  call.pool = c.pool;
  call.up = in.rows(in.up);
  call.p = in.rows(in.p);
  call.z = {z.data(), step_size(maps)};
  call.affine = in.affine();
  call.floor = in.floor;
  if (c.spatial) {
    call.spatial = in.spatial.data();
    call.level = in.level.data();
    call.point = in.point.data();
    call.spatial_place = in.spatial_place.data();
  }
  if (c.gates) {
    call.uniform = in.uniform.data();
    call.at_peak = in.at_peak.data();
    call.place = in.place.data();
  }
  if (c.norm) {
    call.offset = in.offset.data();
    call.slope = in.slope.data();
    call.centre = in.centre.data();
  }
  call.grad_z = {grad_z.data(), step_size(maps)};
  launch_grad_walking(call, c.busy, Stream{});
  if (c.pool == 1) {
    Buffer<Io> place = in.up;
    call.up = {place.data(), step_size(maps)};
    call.grad_z = {place.data(), step_size(maps)};
    launch_grad_walking(call, c.busy, Stream{});
    same("grad_z in the place of up", place, grad_z);
  }

  over_planes(maps, [&](int64_t t, int64_t n, int64_t channel, int64_t plane) {
    for (int64_t i = 0; i < maps.pixels(); ++i) {
      const int64_t y = i / c.width / c.pool, x = i % c.width / c.pool, pixel = y * in.maps.width + x;
      const int64_t at = t * step_size(maps) + maps.at(n, channel, i);
      Real share = 0;
      if (y < in.maps.height && x < in.maps.width) {
        const int64_t map = n * in.maps.pixels() + pixel, affine = in.affine().at(t, n) + channel;
        const int64_t from = t * step_size(in.maps) + in.maps.at(n, channel, pixel);
        const bool point = in.spatial_place[map] == t * c.channels + channel;
        share = plane_gradient(in.a[affine], in.b[affine], c.spatial ? in.spatial[map] : Real(1), in.floor,
                               Real(in.p[from]), Real(in.up[from]), c.spatial ? in.level[map] : Real(0),
                               c.spatial && point ? in.point[map] : Real(0),
                               c.gates ? in.uniform[plane] : Real(0),
                               c.gates && in.place[plane] == pixel ? in.at_peak[plane] : Real(0));
        if (c.pool > 1) share = share * (Real(1) / Real(c.pool * c.pool));
      }
      const Real wanted = !c.norm ? share
                                  : norm_gradient(share, Real(z[at]), in.offset[channel], in.slope[channel],
                                                  in.centre[channel]);
      same("grad_z", at, double(grad_z[at]), double(Io(wanted)));
    }
  });
}

// Over three blocks of each grid.
template <class Io, class Real>
void add_type(Cases& cases, const std::string& type) {
  cases[type + " statistics"] = [] {
    statistics<Io, Real>({.steps = 1, .samples = 2, .channels = 9, .height = 4, .width = 8});
    statistics<Io, Real>(
        {.steps = 1, .samples = 2, .channels = 40, .height = 5, .width = 8, .pool = 2, .last = true});
  };
  cases[type + " sums"] = [] {
    sums<Io, Real>({.steps = 1, .samples = 3, .channels = 6, .height = 11, .width = 16, .spatial = true});
  };
  cases[type + " sums, channels last"] = [] {
    sums<Io, Real>(
        {.steps = 3, .samples = 1, .channels = 24, .height = 3, .width = 6, .last = true, .spatial = true});
  };
  for (const bool last : {false, true})
    cases[type + " grad" + (last ? ", channels last" : "")] = [last] {
      grad<Io, Real>({.steps = 3,
                      .samples = last ? 8 : 4,
                      .channels = sizeof(Io) == 2 ? 24 : 16,
                      .height = 11,
                      .width = 16,
                      .pool = 2,
                      .last = last,
                      .spatial = true,
                      .gates = true,
                      .busy = 1500});
    };
}

constexpr Case kSmall{.steps = 1, .samples = 2, .channels = 3, .height = 5, .width = 7};

Case with(const std::function<void(Case&)>& change) {
  Case c = kSmall;
  change(c);
  return c;
}

void add_statistics(Cases& cases) {
  cases["far"] = [] {  // mean / deviation = 1000
    for (const Case& c :
         {Case{.steps = 1, .samples = 1, .channels = 3, .height = 32, .width = 68},
          Case{.steps = 1, .samples = 1, .channels = 8, .height = 17, .width = 16, .last = true},
          Case{.steps = 1, .samples = 1, .channels = 3, .height = 20, .width = 16, .pool = 2}}) {
      Case far = c;
      far.fill = Fill::kFar;
      statistics<float, float>(far);
    }
  };
  for (const bool last : {false, true}) {
    const std::string layout = last ? ", channels last" : "";
    for (const auto& [name, fill] :
         std::map<std::string, Fill>{{"ties", Fill::kTies}, {"odd values", Fill::kOdd}})
      cases[name + layout] = [=, fill = fill] {
        for (const int64_t pool : {1, 2}) {
          const Case even{.steps = 1,
                          .samples = 2,
                          .channels = 8,
                          .height = 9,
                          .width = 8,
                          .pool = pool,
                          .last = last,
                          .fill = fill};
          statistics<float, float>(even);
          statistics<BFloat16, float>(with([=](Case& c) { c.pool = pool, c.last = last, c.fill = fill; }));
        }
      };
    cases["uneven statistics" + layout] = [=] {
      statistics<float, float>(with([=](Case& c) { c.pool = 3, c.last = last; }));
      statistics<float, float>({.steps = 1,
                                .samples = 1,
                                .channels = 4,
                                .height = 4,
                                .width = 8,
                                .last = last,
                                .misaligned = true});
    };
  }
  cases["a block a plane"] = [] {
    statistics<float, float>({.steps = 1, .samples = 1, .channels = 3, .height = 23, .width = 23});
  };
  cases["no gamma"] = [] { statistics<float, float>(with([](Case& c) { c.gamma = false; })); };
  cases["no extrema"] = [] {
    for (const bool last : {false, true})
      statistics<float, float>(with([=](Case& c) { c.extrema = false, c.pool = 2, c.last = last; }));
  };
}

void add_passes(Cases& cases) {
  for (const bool last : {false, true}) {
    const std::string layout = last ? ", channels last" : "";
    cases["uneven sums" + layout] = [=] {  // vectors do not fit, or rows are not aligned
      sums<float, float>(
          {.steps = 2, .samples = 1, .channels = 3, .height = 3, .width = 5, .last = last, .spatial = true});
      sums<float, float>({.steps = 1,
                          .samples = 1,
                          .channels = 4,
                          .height = 4,
                          .width = 4,
                          .last = last,
                          .misaligned = true,
                          .spatial = true});
    };
    cases["no spatial map" + layout] = [=] {
      sums<float, float>({.steps = 2,
                          .samples = 1,
                          .channels = 4,
                          .height = 2,
                          .width = 4,
                          .last = last,
                          .one_affine = true,
                          .relu = false,
                          .norm = false});
    };
    cases["pools" + layout] = [=] {
      for (const int64_t pool : {2, 3}) {
        grad<float, float>(with([=](Case& c) { c.pool = pool, c.last = last, c.spatial = c.gates = true; }));
        grad<float, float>(with([=](Case& c) { c.pool = pool, c.last = last, c.norm = c.relu = false; }));
      }
      grad<float, float>({.steps = 2,
                          .samples = 1,
                          .channels = 4,
                          .height = 4,
                          .width = 8,
                          .pool = 2,
                          .last = last,
                          .misaligned = true});
    };
    cases["no pool" + layout] = [=] {
      grad<float, float>({.steps = 3,
                          .samples = 2,
                          .channels = 8,
                          .height = 9,
                          .width = 12,
                          .last = last,
                          .spatial = true,
                          .gates = true});
      grad<float, float>(with([=](Case& c) { c.last = last, c.gates = true, c.busy = 10; }));
      grad<BFloat16, float>(with([=](Case& c) { c.last = last, c.spatial = true, c.norm = false; }));
    };
  }
  cases["one pixel"] = [] {
    const Case c{
        .steps = 1, .samples = 2, .channels = 40, .height = 1, .width = 1, .spatial = true, .gates = true};
    statistics<float, float>(c);
    sums<float, float>(c);
    grad<float, float>(c);
  };
}

void add_split(Cases& cases) {
  cases["more blocks than a launch takes"] = [] {
    on_host::limits.x = 2;
    for (const bool last : {false, true}) {
      statistics<float, float>(
          {.steps = 3, .samples = 2, .channels = 3, .height = 5, .width = 4, .last = last});
      sums<float, float>(
          {.steps = 3, .samples = 1, .channels = 6, .height = 9, .width = 10, .last = last, .spatial = true});
    }
  };
  cases["more steps than a launch takes"] = [] {
    on_host::limits.y = 2;
    for (const bool last : {false, true})
      for (const int64_t pool : {1, 2})
        grad<float, float>({.steps = 5,
                            .samples = 2,
                            .channels = 3,
                            .height = 4,
                            .width = 5,
                            .pool = pool,
                            .last = last,
                            .spatial = true,
                            .gates = true});
  };
}

template <class Io, class Real>
void launch_every_kernel(bool last, int64_t size, int64_t pool) {
  const Maps maps{1, 1, size, size, size, last};
  StatisticsCall<Io, Real> statistics{};
  statistics.maps = maps;
  statistics.pool = pool;
  launch_statistics(statistics, Stream{});
  SqueezeCall<Io, Real> squeeze{};
  squeeze.maps = maps;
  launch_squeeze(squeeze, Stream{});
  ProjectCall<Io, Real> project{};
  project.maps = maps;
  launch_project(project, Stream{});
  GradCall<Io, Real> grad{};
  grad.maps = maps;
  grad.pool = pool;
  launch_grad(grad, Stream{});
}

// All layouts, vectors and lone values, every pool that has a kernel of its own.
void launch_all() {
#ifndef ATTSNN_FLOAT_ONLY
  for (const bool last : {false, true})
    for (const int64_t size : {3, 8})
      for (const int64_t pool : {1, 2, 3})
        for (const ScalarType type :
             {ScalarType::Double, ScalarType::Float, ScalarType::BFloat16, ScalarType::Half})
          dispatch_type(type,
                        [&]<class Io, class Real>() { launch_every_kernel<Io, Real>(last, size, pool); });
#endif
}

}  // namespace

int main(int count, char** arguments) {
  if (on_host::lists_launches(count, arguments, launch_all)) return 0;
  Cases cases;
  add_type<float, float>(cases, "float");
  add_type<Double, Double>(cases, "double");
  add_type<BFloat16, float>(cases, "bfloat16");
  add_type<Half, float>(cases, "half");
  add_statistics(cases);
  add_passes(cases);
  add_split(cases);
  return run_case(cases, count, arguments);
}
