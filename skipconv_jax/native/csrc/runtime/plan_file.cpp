#include "runtime/plan_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>

#include "include/skipconv.h"

namespace skc {
namespace {

constexpr size_t kHeader = 32, kEntry = 32, kSigned = 24;
constexpr size_t kMaxFloats = (size_t)1 << 40;

[[noreturn]] void bad(const std::string& text) { throw PlanError(SKIPCONV_ERROR_FORMAT, text); }

// CRC-32 as in zlib.
uint32_t crc32(const uint8_t* data, size_t n, uint32_t crc = 0) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int k = 0; k < 8; k++) c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
      t[i] = c;
    }
    return t;
  }();
  crc = ~crc;
  for (size_t i = 0; i < n; i++) crc = table[(crc ^ data[i]) & 0xff] ^ (crc >> 8);
  return ~crc;
}

// Reads little-endian numbers and never past the end.
struct Reader {
  const uint8_t* data;
  size_t left;
  template <class T>
  T number() {
    T value;
    if (left < sizeof(T)) bad("damaged: its descriptions end early");
    std::memcpy(&value, data, sizeof(T));
    data += sizeof(T), left -= sizeof(T);
    return value;
  }
  std::string text() {
    const uint32_t n = number<uint32_t>();
    if (n > left) bad("damaged: a name longer than its section");
    std::string value(reinterpret_cast<const char*>(data), n);
    data += n, left -= n;
    return value;
  }
  uint32_t count() {
    const uint32_t n = number<uint32_t>();
    if (n > left) bad("damaged: more descriptions than bytes");
    return n;
  }
};

TensorDesc tensor(Reader& in) {
  TensorDesc t;
  t.name = in.text();
  const uint32_t rank = in.number<uint32_t>();
  if (rank > SKIPCONV_MAX_RANK) bad("damaged: a tensor of " + std::to_string(rank) + " axes");
  for (uint32_t i = 0; i < rank; i++) {
    t.shape.push_back(in.number<int32_t>());
    if (t.shape.back() < 0 || (t.size *= (size_t)t.shape.back()) > kMaxFloats) bad("damaged: a shape");
  }
  std::vector<bool> seen(rank, false);
  for (uint32_t i = 0; i < rank; i++) {
    const uint32_t axis = in.number<uint32_t>();
    if (axis >= rank || seen[axis]) bad("damaged: an order of axes");
    seen[axis] = true;
    t.order.push_back((int32_t)axis);
  }
  return t;
}

template <class T>
std::vector<T> array(const uint8_t* data, size_t bytes) {
  if (bytes % sizeof(T)) bad("damaged: an array of half numbers");
  std::vector<T> out(bytes / sizeof(T));
  if (bytes) std::memcpy(out.data(), data, bytes);
  return out;
}

}  // namespace

PlanFile read_plan(const uint8_t* data, size_t bytes) {
  if (bytes < kHeader || std::memcmp(data, "SKCPLAN", 8)) bad("not a saved plan");
  Reader head{data + 8, kHeader - 8};
  const auto version = head.number<uint32_t>(), count = head.number<uint32_t>();
  const auto size = head.number<uint64_t>();
  const auto expected = head.number<uint32_t>(), zero = head.number<uint32_t>();
  if (version > SKIPCONV_FILE_VERSION)
    throw PlanError(SKIPCONV_ERROR_VERSION, "a plan of version " + std::to_string(version) +
                                                "; this library reads up to " +
                                                std::to_string(SKIPCONV_FILE_VERSION));
  if (size != bytes) bad("cut: " + std::to_string(bytes) + " of " + std::to_string(size) + " bytes");
  if (count > (bytes - kHeader) / kEntry) bad("damaged: its table of sections");
  if (zero || crc32(data + kHeader, count * kEntry, crc32(data, kSigned)) != expected)
    bad("damaged: its table of sections");
  std::map<std::string, std::pair<const uint8_t*, size_t>> sections;
  std::vector<std::pair<size_t, size_t>> parts = {{0, kHeader + count * kEntry}};
  for (uint32_t i = 0; i < count; i++) {
    const uint8_t* entry = data + kHeader + i * kEntry;
    Reader in{entry + 4, kEntry - 4};
    const std::string tag(reinterpret_cast<const char*>(entry), 4);
    const auto crc = in.number<uint32_t>();
    const auto offset = in.number<uint64_t>(), length = in.number<uint64_t>();
    if (offset > bytes || length > bytes - offset || crc32(data + offset, length) != crc)
      bad("damaged: section " + tag);
    sections[tag] = {data + offset, (size_t)length};
    parts.emplace_back(offset, offset + length);
  }
  // What no sum covers is zero, so that a file is the one that was written or refused.
  parts.emplace_back(bytes, bytes);
  std::sort(parts.begin(), parts.end());
  for (size_t i = 1; i < parts.size(); i++) {
    const size_t last = parts[i - 1].second, first = parts[i].first;
    if (first < last || !std::all_of(data + last, data + first, [](uint8_t b) { return !b; }))
      bad("damaged: bytes between its sections");
  }
  for (const char* tag : {"WORD", "WGHT", "GATE", "DESC", "META"})
    if (!sections.count(tag)) bad(std::string("damaged: no section ") + tag);

  PlanFile plan;
  const auto part = [&](const char* tag) { return sections[tag]; };
  plan.words = array<int32_t>(part("WORD").first, part("WORD").second);
  plan.weights = array<float>(part("WGHT").first, part("WGHT").second);
  plan.gates = array<float>(part("GATE").first, part("GATE").second);
  plan.meta.assign(reinterpret_cast<const char*>(part("META").first), part("META").second);
  Reader in{part("DESC").first, part("DESC").second};
  const uint32_t n_in = in.count(), n_out = in.count(), n_masks = in.count();
  for (uint32_t i = 0; i < n_in; i++) plan.inputs.push_back(tensor(in));
  for (uint32_t i = 0; i < n_out; i++) plan.outputs.push_back(tensor(in));
  for (uint32_t i = 0; i < n_masks; i++) {
    MaskDesc m;
    m.name = in.text();
    m.offset = in.number<int32_t>(), m.rows = in.number<int32_t>(), m.columns = in.number<int32_t>();
    plan.masks.push_back(m);
  }
  return plan;
}

}  // namespace skc
