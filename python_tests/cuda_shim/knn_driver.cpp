// Runs the nearest-neighbor kernels on the shim, one request after another: a header and arrays on standard input, a
// status and arrays on standard output. Every buffer is exactly as large as it must be.
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "common/cuda_support.h"
#include "knn/knn_cuda.h"

namespace {

template <typename T>
constexpr echo_ext::DType kDType = sizeof(T) == 8 ? echo_ext::DType::float64 : echo_ext::DType::float32;

using namespace echo_ext;

int device = 0;

// A plan is what a call would launch, however large it is: nothing is sent, read or written.
bool planning = false;

enum class Operation : int64_t { keys, search, count, boundary, max_neighbors, pairs, max_pair_points };

struct Request {  // as python_tests/emulated_device.py packs it
  int64_t operation, single, order, batch, num_points, num_queries, dim, k, euclidean, exclude_within, has_rows;
  int64_t has_indices, num_radii, num_groups, inclusive, sample_size, shared_bytes, multiprocessors;
  int64_t count_x, count_y, symmetric, plan;
};

bool read_all(void* to, size_t bytes) {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t now = read(STDIN_FILENO, at, bytes);
    if (now <= 0) return false;
    at += now;
    bytes -= static_cast<size_t>(now);
  }
  return true;
}

void write_all(const void* from, size_t bytes) {
  const auto* at = static_cast<const char*>(from);
  while (bytes > 0) {
    const ssize_t now = write(STDOUT_FILENO, at, bytes);
    if (now <= 0) std::_Exit(4);
    at += now;
    bytes -= static_cast<size_t>(now);
  }
}

// On the heap, where AddressSanitizer guards both ends.
class Buffer {
 public:
  explicit Buffer(int64_t bytes)
      : bytes_(static_cast<size_t>(planning ? bytes != 0 : bytes)), data_(std::malloc(bytes_)) {
    if (bytes_ != 0) std::memset(data_, 0xff, bytes_);
  }
  Buffer(Buffer&& other) noexcept : bytes_(other.bytes_), data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }
  template <typename T = void>
  T* data() const {
    return bytes_ == 0 ? nullptr : static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

Buffer receive(int64_t bytes) {
  Buffer buffer(bytes);
  if (!planning && !read_all(buffer.data(), buffer.bytes())) std::_Exit(4);
  return buffer;
}

// In rows of as many numbers as a Launch has, as many rows as the caller has room for, behind one number that is free.
void write_launches() {
  constexpr size_t kMost = 64;
  std::vector<cuda_shim::Launch> records = cuda_shim::launches;
  records.resize(kMost);
  const int64_t none = 0;
  write_all(&none, sizeof(none));
  write_all(records.data(), kMost * sizeof(records[0]));
}

void answer(const char* error, const std::vector<const Buffer*>& results) {
  const std::string text = error == nullptr ? "" : error;
  const int64_t length = static_cast<int64_t>(text.size());
  write_all(&length, sizeof(length));
  write_all(text.data(), text.size());
  if (error != nullptr) return;
  if (planning) return write_launches();
  for (const Buffer* result : results) write_all(result->data(), result->bytes());
}

// Points, their order, and the tree.
template <typename T>
struct Tree {
  Buffer points, order, memory;
  KnnTree native;
  Tree(const Request& r, int64_t n)
      : points(receive(r.batch * n * r.dim * static_cast<int64_t>(sizeof(T)))),
        order(receive(r.batch * n * 8)),
        memory(knn_cuda_tree_bytes<T>({kDType<T>, nullptr, nullptr, r.batch, n, static_cast<int>(r.dim), nullptr})),
        native{kDType<T>, points.data(), order.data<int64_t>(), r.batch, n, static_cast<int>(r.dim), memory.data()} {
    const char* error = knn_cuda_build<T>(native, device, nullptr);
    if (error != nullptr) std::_Exit(5);
  }
};

// Columns, and what is known of them.
template <typename T>
struct Columns {
  Buffer values, sorted, order, gaps;
  KnnColumns native;
  Columns(const Request& r, int64_t count)
      : values(receive(r.batch * count * r.num_points * static_cast<int64_t>(sizeof(T)))),
        sorted(receive(r.batch * count * r.num_points * static_cast<int64_t>(sizeof(T)))),
        order(receive(r.batch * count * r.num_points * 8)),
        gaps(receive(r.batch * count * r.num_points * static_cast<int64_t>(sizeof(T)))),
        native{values.data(), sorted.data(), order.data<int64_t>(), gaps.data(), count} {}
};

template <typename T>
void serve_pairs(const Request& r) {
  const Columns<T> x(r, r.count_x), y(r, r.count_y);
  const Buffer psi = receive(r.num_points * 8);
  const Buffer estimates(r.batch * r.count_x * r.count_y * 8);
  const KnnPairs p{x.native,           y.native,
                   r.symmetric != 0,   r.batch,
                   r.num_points,       static_cast<int>(r.k),
                   psi.data<double>(), estimates.data<double>()};
  answer(knn_cuda_pairs<T>(p, device, nullptr), {&estimates});
}

template <typename T>
void serve(const Request& r) {
  constexpr auto kSize = static_cast<int64_t>(sizeof(T));
  const int dim = static_cast<int>(r.dim), k = static_cast<int>(r.k);
  const Metric metric = r.euclidean != 0 ? Metric::euclidean : Metric::chebyshev;
  switch (static_cast<Operation>(r.operation)) {
    case Operation::keys: {
      const Buffer points = receive(r.batch * r.num_points * r.dim * kSize);
      const Buffer sample = receive(r.batch * r.sample_size * r.dim * kSize);
      const Buffer keys(r.batch * r.num_points * 8);
      return answer(knn_cuda_keys<T>(
                        {points.data(), sample.data(), r.batch, r.num_points, r.sample_size, dim, keys.data<int64_t>()},
                        0, nullptr),
                    {&keys});
    }
    case Operation::search: {
      const Tree<T> points(r, r.num_points);
      const Buffer rows = receive(r.has_rows * r.num_points * 8);
      const Buffer distances(r.batch * (r.num_queries ? r.num_queries : r.num_points) * k * kSize);
      const Buffer indices(r.has_indices * r.batch * (r.num_queries ? r.num_queries : r.num_points) * k * 8);
      KnnSearch p{kDType<T>,
                  points.native.points,
                  nullptr,
                  rows.data<int64_t>(),
                  r.batch,
                  r.num_points,
                  r.num_points,
                  dim,
                  k,
                  metric,
                  r.exclude_within,
                  distances.data(),
                  indices.data<int64_t>(),
                  0};
      if (r.num_queries == 0)
        return answer(knn_cuda_search<T>(p, points.native, points.native, nullptr, device, nullptr),
                      {&distances, &indices});
      const Tree<T> queries(r, r.num_queries);
      const Buffer start = receive(r.batch * ceil_div(r.num_queries, kWarp) * 8);
      p.queries = queries.native.points;
      p.num_queries = r.num_queries;
      return answer(knn_cuda_search<T>(p, points.native, queries.native, start.data<int64_t>(), device, nullptr),
                    {&distances, &indices});
    }
    case Operation::count: {
      const Tree<T> points(r, r.num_points);
      const Buffer rows = receive(r.has_rows * r.num_points * 8);
      const Buffer radii = receive(r.num_radii * r.batch * r.num_groups * r.num_points * kSize);
      const Buffer groups = receive(r.dim * 4);
      const Buffer counts(r.num_radii * r.batch * r.num_points * 8);
      return answer(
          knn_cuda_count<T>({kDType<T>, points.native.points, radii.data(), groups.data<int32_t>(),
                             rows.data<int64_t>(), r.batch, r.num_points, r.num_radii, static_cast<int>(r.num_groups),
                             dim, metric, r.inclusive != 0, r.exclude_within, counts.data<int64_t>(), 0},
                            points.native, device, nullptr),
          {&counts});
    }
    case Operation::boundary: {
      const Tree<T> points(r, r.num_points);
      const Buffer radii = receive(r.batch * r.num_points * kSize);
      const Buffer skip = receive(r.batch * r.num_points * 8);
      const Buffer indices(r.batch * r.num_points * (2 * k + 1) * 8);
      return answer(knn_cuda_boundary<T>({kDType<T>, points.native.points, radii.data(), skip.data<int64_t>(), r.batch,
                                          r.num_points, dim, k, r.exclude_within, indices.data<int64_t>(), 0},
                                         points.native, device, nullptr),
                    {&indices});
    }
    case Operation::pairs: return serve_pairs<T>(r);
    case Operation::max_pair_points: {
      const Buffer most(8);
      *most.data<int64_t>() = knn_cuda_pairs_max_points<T>(device);
      return answer(nullptr, {&most});
    }
    case Operation::max_neighbors: {
      const Buffer most(8);
      *most.data<int64_t>() = knn_cuda_max_neighbors(device);
      return answer(nullptr, {&most});
    }
  }
  std::_Exit(4);
}

}  // namespace

int main() {
  Request request{};
  while (read_all(&request, sizeof(request))) {
    cuda_shim::order = static_cast<cuda_shim::Order>(request.order);
    cuda_shim::launches.clear();
    planning = request.plan != 0;
    cuda_shim::runs_kernels = !planning;
    device =
        cuda_shim::device_like({static_cast<int>(request.multiprocessors), static_cast<int>(request.shared_bytes)});
    request.single != 0 ? serve<float>(request) : serve<double>(request);
  }
  return 0;
}
