#include "tests/bench/raw_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <thread>

#include "tests/bench/require.h"
#include "tests/bench/trial.h"

namespace terrace::bench {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kStep = size_t{1} << 20;

struct Free {
  void operator()(void* memory) const { free(memory); }
};
using Buffer = std::unique_ptr<char, Free>;

Buffer MakeBuffer(size_t bytes) {
  Buffer buffer(static_cast<char*>(aligned_alloc(kPage, bytes)));
  std::memset(buffer.get(), 0x5A, bytes);
  return buffer;
}

}  // namespace

RawFile::RawFile(const std::string& path, uint64_t bytes) : bytes_(bytes) {
  const int out = open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
  Require(out >= 0, "creating " + path);
  const Buffer buffer = MakeBuffer(kStep);
  for (uint64_t written = 0; written < bytes; written += kStep) {
    Require(write(out, buffer.get(), kStep) == static_cast<ssize_t>(kStep), "writing " + path);
  }
  Require(fsync(out) == 0, "syncing " + path);
  posix_fadvise(out, 0, 0, POSIX_FADV_DONTNEED);
  close(out);
  fd_ = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (fd_ < 0) {
    direct_ = false;
    fd_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  }
  Require(fd_ >= 0, "opening " + path);
}

RawFile::~RawFile() { close(fd_); }

double RawFile::Read(const std::vector<uint64_t>& offsets, size_t size, int threads) const {
  std::atomic<size_t> next = 0;
  std::atomic<bool> failed = false;
  const auto work = [&] {
    const Buffer buffer = MakeBuffer(size);
    for (size_t i = next++; i < offsets.size(); i = next++) {
      const ssize_t got = pread(fd_, buffer.get(), size, static_cast<off_t>(offsets[i]));
      if (got != static_cast<ssize_t>(size) || buffer.get()[size - 1] != 0x5A) failed = true;
    }
  };
  const Stopwatch watch;
  std::vector<std::thread> readers;
  for (int i = 0; i < threads; ++i) readers.emplace_back(work);
  for (std::thread& reader : readers) reader.join();
  const double seconds = watch.seconds();
  Require(!failed, "reading the raw file");
  return seconds;
}

double RawFile::ReadAll(int threads) const {
  std::vector<uint64_t> offsets;
  for (uint64_t at = 0; at < bytes_; at += kStep) offsets.push_back(at);
  return Read(offsets, kStep, threads);
}

}  // namespace terrace::bench
