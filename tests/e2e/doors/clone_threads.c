/* Clones files with FICLONE from several threads at once; built static, it makes its system calls itself.
 *
 *   clone_threads SOURCE TARGET_PREFIX THREADS CLONES
 *
 * Each thread clones SOURCE to TARGET_PREFIX.THREAD.N. Prints how many failed, and the first errno. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const char *source_path;
static const char *target_prefix;
static int clones;
static int failures;
static int first_error;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int clone_one(int source, long thread, int number) {
  char path[4096];
  snprintf(path, sizeof(path), "%s.%ld.%d", target_prefix, thread, number);
  int target = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (target < 0) return errno;
  int error = ioctl(target, FICLONE, source) == 0 ? 0 : errno;
  close(target);
  return error;
}

static void *work(void *argument) {
  int source = open(source_path, O_RDONLY);
  for (int i = 0; i < clones; i++) {
    int error = source < 0 ? ENOENT : clone_one(source, (long)argument, i);
    if (error == 0) continue;
    pthread_mutex_lock(&lock);
    failures++;
    if (first_error == 0) first_error = error;
    pthread_mutex_unlock(&lock);
  }
  return NULL;
}

int main(int count, char **words) {
  if (count != 5) return 2;
  source_path = words[1];
  target_prefix = words[2];
  int threads = atoi(words[3]);
  clones = atoi(words[4]);
  pthread_t ids[256];
  if (threads > 256) return 2;
  for (long i = 0; i < threads; i++) pthread_create(&ids[i], NULL, work, (void *)i);
  for (int i = 0; i < threads; i++) pthread_join(ids[i], NULL);
  printf("failures %d errno %d\n", failures, first_error);
  return failures != 0;
}
