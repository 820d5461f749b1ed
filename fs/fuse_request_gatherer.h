// How a thread gathers requests (fs/fuse_request_poller.h): what they want from the device goes into a ring of its own, many at a time, and their
// answers leave from this thread when the device has done. So nobody is woken but this thread, as with the queues of io_uring
// (fs/fuse_queues.h), whose thread it is in all but the way that requests come.
//
// The ring lives as long as the thread gathers. Like the queues' threads it must not wait for the core or for the device.
#pragma once

#include <memory>

#include "fs/fuse_request_poller.h"

namespace cofs {

class FileDevice;
class Monitor;

// Null: there is no io_uring. Both outlive it.
std::unique_ptr<RequestPoller::Gatherer> make_request_gatherer(Monitor& monitor, FileDevice& device);

}  // namespace cofs
