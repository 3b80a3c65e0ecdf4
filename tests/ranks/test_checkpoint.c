/* Checkpoints on several ranks: saved on R, loaded with other splits, bit for bit; damage is found and the
 * older one used; a full disk, an existing target and NaN leave the older one as it was. ranks: 1 2 3 4 */
#include "runtime/checkpoint.h"
#include "runtime/files.h"
#include "runtime/hash.h"
#include "tests/check.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

enum { TENSORS = 4, TOTAL = 512 };

/* Gaps at 91..127, 133..191, 387..447 and at the end: they belong to nothing. */
static struct parameter list[TENSORS] = {
    {.name = "embed.weight", .rows = 7, .cols = 13, .offset = 0, .count = 91},
    {.name = "norm.weight", .rows = 1, .cols = 5, .vector = true, .offset = 128, .count = 5, .bucket = 1},
    {.name = "up.weight", .rows = 3, .cols = 65, .offset = 192, .count = 195, .bucket = 1},
    {.name = "head.weight", .rows = 6, .cols = 1, .offset = 448, .count = 6, .bucket = 1},
};
static struct bucket buckets[2] = {{0, 128}, {128, TOTAL - 128}};
static const struct params params = {list, TENSORS, buckets, 2, TOTAL};

static struct comm comm;
static char run[256];

/* How the flat vector is cut: whole in shares; each bucket in shares; every rank a comb of single elements
 * and runs. */
enum split { SPLIT_WHOLE, SPLIT_BUCKETS, SPLIT_COMB, SPLIT_COUNT };

struct part {
    struct checkpoint_piece pieces[TOTAL];
    int64_t count;
    float values[3][TOTAL]; /* what the pieces point into, packed one behind the other */
};

static void cut(struct part *part, enum split split)
{
    part->count = 0;
    if (split == SPLIT_COMB) {
        for (int64_t at = 0, i = 0; at < TOTAL; i++) {
            int64_t length = 1 + i * 5 % 23;
            if (length > TOTAL - at) length = TOTAL - at;
            if (i % comm.size == comm.rank)
                part->pieces[part->count++] = (struct checkpoint_piece){.offset = at, .count = length};
            at += length;
        }
    }
    for (int b = 0; split != SPLIT_COMB && b < (split == SPLIT_WHOLE ? 1 : 2); b++) {
        struct bucket whole = split == SPLIT_WHOLE ? (struct bucket){0, TOTAL} : buckets[b];
        int64_t first, length;
        comm_share(whole.count, comm.size, comm.rank, &first, &length);
        part->pieces[part->count++] =
            (struct checkpoint_piece){.offset = whole.offset + first, .count = length};
    }
    int64_t used = 0;
    for (int64_t i = 0; i < part->count; used += part->pieces[i++].count) {
        part->pieces[i].parameter = part->values[0] + used;
        part->pieces[i].moment = part->values[1] + used;
        part->pieces[i].variance = part->values[2] + used;
    }
}

static bool in_tensor(int64_t at)
{
    for (int t = 0; t < TENSORS; t++)
        if (at >= list[t].offset && at < list[t].offset + list[t].count) return true;
    return false;
}

/* Some of every kind of number: denormals, negative zero, extremes. */
static float value_of(int64_t step, int kind, int64_t at)
{
    static const float odd[] = {-0.0f, 1e-45f, 3.4028235e38f, -1.17549435e-38f};
    if (at % 17 == 3) return odd[(at / 17 + kind) % 4];
    return (float)(step * 1000 + kind * 5000 + at) * 0.37f;
}

static void fill(struct part *part, int64_t step)
{
    for (int64_t i = 0; i < part->count; i++)
        for (int64_t k = 0; k < part->pieces[i].count; k++) {
            int64_t at = part->pieces[i].offset + k;
            part->pieces[i].parameter[k] = value_of(step, 0, at);
            part->pieces[i].moment[k] = value_of(step, 1, at);
            part->pieces[i].variance[k] = value_of(step, 2, at);
        }
}

/* Elements that are not, bit for bit, what was saved; gaps must be zero. */
static int64_t differences(const struct part *part, int64_t step)
{
    int64_t count = 0;
    for (int64_t i = 0; i < part->count; i++)
        for (int64_t k = 0; k < part->pieces[i].count; k++) {
            int64_t at = part->pieces[i].offset + k;
            const float *got[3] = {part->pieces[i].parameter, part->pieces[i].moment,
                                   part->pieces[i].variance};
            for (int kind = 0; kind < 3; kind++) {
                float want = in_tensor(at) ? value_of(step, kind, at) : 0;
                count += memcmp(&want, &got[kind][k], sizeof want) != 0;
            }
        }
    return count;
}

static struct checkpoint_state state_of(int64_t step)
{
    struct checkpoint_state state = {
        .step = step, .world = comm.size, .global_batch = 9, .tokens = 1LL << 40};
    state.seed = 18446744073709551615ULL;
    hash_bytes(state.model_fingerprint, "model", 5);
    hash_bytes(state.reference_fingerprint, "reference", 9);
    state.run_file = (char *)(uintptr_t) "a: \"b\"\nc: \303\251\t\\\n";
    state.config = (char *)(uintptr_t) "{\n  \"x\": 1e-05\n}\n";
    return state;
}

static enum status save(int64_t step, enum split split)
{
    static struct part part;
    cut(&part, split);
    fill(&part, step);
    struct checkpoint_state state = state_of(step);
    return checkpoint_save(&comm, run, &params, &state, part.pieces, part.count);
}

/* -1: the load failed. */
static int64_t load(const char *folder, int64_t step, enum split split)
{
    static struct part part;
    struct checkpoint_state state, want = state_of(step);
    cut(&part, split);
    memset(part.values, 0xff, sizeof part.values);
    if (checkpoint_load(&comm, folder, &params, &state, part.pieces, part.count) != STATUS_OK) return -1;
    CHECK(state.step == step && state.world == comm.size && state.global_batch == 9 &&
          state.tokens == 1LL << 40);
    CHECK(state.seed == want.seed && !strcmp(state.model_fingerprint, want.model_fingerprint));
    CHECK(!strcmp(state.reference_fingerprint, want.reference_fingerprint));
    CHECK(!strcmp(state.data_fingerprint, "") && !strcmp(state.run_file, want.run_file));
    CHECK(!strcmp(state.config, want.config));
    checkpoint_state_free(&state);
    return differences(&part, step);
}

static const char *path_of(int64_t step, const char *file)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/checkpoint-%lld%s%s", run, (long long)step, *file ? "/" : "", file);
    return path;
}

static void begin(void)
{
    if (comm.rank == 0) {
        snprintf(run, sizeof run, "/tmp/wpo-test-XXXXXX");
        CHECK(mkdtemp(run) != NULL);
    }
    comm_broadcast(&comm, run, sizeof run, 0);
}

static void end(void)
{
    comm_barrier(&comm);
    if (comm.rank == 0) CHECK(files_remove_tree(run) == STATUS_OK);
    comm_barrier(&comm);
}

static void check_round_trip(void)
{
    begin();
    char *found;
    CHECK(checkpoint_find(&comm, run, "auto", &found) == STATUS_OK && !found);
    int64_t step = 8;
    for (enum split from = 0; from < SPLIT_COUNT; from++, step++) {
        CHECK(save(step, from) == STATUS_OK);
        CHECK(checkpoint_find(&comm, run, "auto", &found) == STATUS_OK);
        CHECK(found && !strcmp(found, path_of(step, ""))); /* 10 is newer than 9 */
        for (enum split to = 0; to < SPLIT_COUNT; to++)
            CHECK(load(found, step, to) == 0);
        free(found);
    }
    CHECK(checkpoint_find(&comm, run, path_of(8, ""), &found) == STATUS_OK && !strcmp(found, path_of(8, "")));
    free(found);
    struct checkpoint_state state;
    CHECK(checkpoint_state_read(&state, path_of(9, "")) == STATUS_OK && state.step == 9);
    checkpoint_state_free(&state);
    end();
}

/* -- damage ----------------------------------------------------------------------------------- */

static void flip(const char *path, int64_t at)
{
    if (comm.rank == 0) {
        int file = open(path, O_RDWR);
        char byte;
        CHECK(file >= 0 && pread(file, &byte, 1, at) == 1);
        byte ^= 4;
        CHECK(pwrite(file, &byte, 1, at) == 1);
        close(file);
    }
    comm_barrier(&comm);
}

static int64_t size_of(const char *path)
{
    int descriptor;
    int64_t size = 0;
    if (files_open(&descriptor, &size, path) == STATUS_OK) close(descriptor);
    return size;
}

/* Step 2 is damaged: it is refused by name, and step 1 is found in its place. */
static void expect_older(void)
{
    char *found;
    CHECK(load(path_of(2, ""), 2, SPLIT_WHOLE) == -1);
    CHECK_TEXT(status_sentence(), run);
    CHECK(checkpoint_find(&comm, run, path_of(2, ""), &found) == STATUS_BAD && !found);
    CHECK(checkpoint_find(&comm, run, "auto", &found) == STATUS_OK);
    CHECK(found && !strcmp(found, path_of(1, "")));
    free(found);
}

static void expect_newest(void)
{
    char *found;
    CHECK(checkpoint_find(&comm, run, "auto", &found) == STATUS_OK);
    CHECK(found && !strcmp(found, path_of(2, "")));
    free(found);
    CHECK(load(path_of(2, ""), 2, SPLIT_BUCKETS) == 0);
}

static void move(const char *from, const char *to)
{
    if (comm.rank == 0) CHECK(rename(from, to) == 0);
    comm_barrier(&comm);
}

static void check_damage(void)
{
    begin();
    CHECK(save(1, SPLIT_BUCKETS) == STATUS_OK && save(2, SPLIT_BUCKETS) == STATUS_OK);
    expect_newest();
    char names[8][64] = {"manifest.json", "master.h5"};
    for (int r = 0; r < comm.size; r++)
        snprintf(names[2 + r], sizeof names[0], "shard-%05d-of-%05d.h5", r, comm.size);
    for (int i = 0; i < 2 + comm.size; i++) {
        char *path = text_copy(path_of(2, names[i])), *away = text_format("%s.away", path);
        int64_t size = size_of(path);
        for (int64_t at = 0; at < size; at += at ? size / 5 + 1 : size / 3) { /* some bytes of every region */
            flip(path, at);
            expect_older();
            flip(path, at);
        }
        flip(path, size - 2);
        expect_older();
        flip(path, size - 2);
        move(path, away); /* missing */
        expect_older();
        move(away, path);
        expect_newest(); /* the harness takes back what it did: it is the damage that was seen */
        free(path);
        free(away);
    }
    /* The shard of another step under this one's name: right size, right format, wrong content. */
    char *one = text_copy(path_of(1, names[2])), *two = text_copy(path_of(2, names[2]));
    char *spare = text_format("%s/spare", run);
    move(one, spare);
    move(two, one);
    CHECK(load(path_of(1, ""), 1, SPLIT_WHOLE) == -1);
    CHECK_TEXT(status_sentence(), "SHA-256");
    move(one, two);
    move(spare, one);
    expect_newest();
    free(one);
    free(two);
    free(spare);
    /* A manifest that is cut off anywhere. */
    char *text, *manifest = text_copy(path_of(2, "manifest.json"));
    size_t bytes;
    CHECK(files_read(&text, &bytes, manifest, 1 << 20) == STATUS_OK);
    comm_barrier(&comm);
    for (size_t length = 0; length < bytes; length += bytes / 6 + 1) {
        if (comm.rank == 0) CHECK(files_replace(manifest, text, length) == STATUS_OK);
        comm_barrier(&comm);
        expect_older();
    }
    /* All damaged: an error, never a silent start from nothing. */
    flip(path_of(1, "master.h5"), 99);
    char *found;
    CHECK(checkpoint_find(&comm, run, "auto", &found) == STATUS_BAD && !found);
    CHECK_TEXT(status_sentence(), "none of 2 checkpoints");
    free(text);
    free(manifest);
    end();
}

/* -- saves that fail -------------------------------------------------------------------------- */

static void limit_files(rlim_t bytes)
{
    struct rlimit limit;
    getrlimit(RLIMIT_FSIZE, &limit);
    limit.rlim_cur = bytes < limit.rlim_max ? bytes : limit.rlim_max;
    setrlimit(RLIMIT_FSIZE, &limit);
}

/* Neither step 2 nor anything half-written is there, and step 1 is as it was. */
static void expect_only_first(void)
{
    char **names;
    int64_t count;
    CHECK(files_list(&names, &count, run) == STATUS_OK);
    CHECK(count == 1 && !strcmp(names[0], "checkpoint-1"));
    files_names_free(names, count);
    CHECK(load(path_of(1, ""), 1, SPLIT_COMB) == 0);
}

static void check_failed_saves(void)
{
    begin();
    CHECK(save(1, SPLIT_WHOLE) == STATUS_OK);
    int64_t most =
        size_of(path_of(1, "master.h5")); /* the largest file, so the last limit stops rank 0 alone */
    const int64_t limits[] = {0, 1, 512, 1000, 2000, 3000, most - 1};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        limit_files((rlim_t)limits[i]);
        enum status status = save(2, SPLIT_WHOLE);
        limit_files(RLIM_INFINITY);
        CHECK(status == STATUS_BAD);
        CHECK_TEXT(status_sentence(), "checkpoint-2.part");
        CHECK_TEXT(status_sentence(), "are needed");
        expect_only_first();
    }
    if (comm.size > 1) { /* one rank alone has no room: all are told, and who it was */
        if (comm.rank == comm.size - 1) limit_files(100);
        enum status status = save(2, SPLIT_WHOLE);
        limit_files(RLIM_INFINITY);
        CHECK(status == STATUS_BAD);
        char who[32];
        snprintf(who, sizeof who, "rank %d on", comm.size - 1);
        CHECK_TEXT(status_sentence(), who);
        expect_only_first();
    }
    CHECK(save(1, SPLIT_WHOLE) == STATUS_BAD); /* never over an existing one */
    CHECK_TEXT(status_sentence(), "checkpoint-1 exists already");
    expect_only_first();

    static struct part part;
    struct checkpoint_state state = state_of(2);
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int64_t at = 0; at < TOTAL; at += 50) {
        cut(&part, SPLIT_BUCKETS);
        fill(&part, 2);
        for (int64_t i = 0; i < part.count; i++)
            if (at >= part.pieces[i].offset && at < part.pieces[i].offset + part.pieces[i].count)
                part.values[at / 50 % 3][part.pieces[i].parameter - part.values[0] + at -
                                         part.pieces[i].offset] = bad[at / 50 % 3];
        enum status status = checkpoint_save(&comm, run, &params, &state, part.pieces, part.count);
        CHECK((status == STATUS_BAD) == in_tensor(at)); /* what stands in a gap is of no account */
        if (status == STATUS_BAD) {
            CHECK_TEXT(status_sentence(), "checkpoint of step 2 not written");
            CHECK_TEXT(status_sentence(), ".weight holds");
        } else if (comm.rank == 0) {
            CHECK(files_remove_tree(path_of(2, "")) == STATUS_OK);
        }
        comm_barrier(&comm);
        expect_only_first();
    }
    /* Pieces that do not cover everything, or twice. */
    cut(&part, SPLIT_WHOLE);
    fill(&part, 2);
    if (comm.rank == 0) part.pieces[0].count -= 65;
    CHECK(checkpoint_save(&comm, run, &params, &state, part.pieces, part.count) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "pieces of tensor");
    cut(&part, SPLIT_WHOLE);
    fill(&part, 2);
    if (comm.rank == 0) part.pieces[part.count] = part.pieces[part.count - 1], part.count++;
    CHECK(checkpoint_save(&comm, run, &params, &state, part.pieces, part.count) == STATUS_BAD);
    CHECK_TEXT(status_sentence(), "overlap");
    expect_only_first();
    end();
}

/* -- other models, no optimiser, pruning ------------------------------------------------------ */

static void check_models(void)
{
    begin();
    CHECK(save(1, SPLIT_WHOLE) == STATUS_OK);
    list[2].rows = 5, list[2].cols = 39;
    CHECK(load(path_of(1, ""), 1, SPLIT_WHOLE) == -1);
    CHECK_TEXT(status_sentence(), "tensor up.weight has shape [3, 65], and in the model [5, 39]");
    list[2].rows = 3, list[2].cols = 65;
    list[3].name[0] = 'b';
    CHECK(load(path_of(1, ""), 1, SPLIT_WHOLE) == -1);
    CHECK_TEXT(status_sentence(), "head.weight, which the model does not have");
    list[3].name[0] = 'h';
    struct params fewer = params;
    fewer.count--;
    struct checkpoint_state state;
    CHECK(checkpoint_load(&comm, path_of(1, ""), &fewer, &state, NULL, 0) == STATUS_BAD);
    CHECK(checkpoint_load(&comm, path_of(1, ""), &params, &state, NULL, 0) == STATUS_OK);
    checkpoint_state_free(&state);

    static struct part part;
    cut(&part, SPLIT_WHOLE);
    fill(&part, 2);
    for (int64_t i = 0; i < part.count; i++)
        part.pieces[i].moment = part.pieces[i].variance = NULL;
    state = state_of(2);
    CHECK(checkpoint_save(&comm, run, &params, &state, part.pieces, part.count) == STATUS_OK);
    CHECK(checkpoint_load(&comm, path_of(2, ""), &params, &state, part.pieces, part.count) == STATUS_OK);
    checkpoint_state_free(&state);
    CHECK(load(path_of(2, ""), 2, SPLIT_WHOLE) == -1);
    CHECK_TEXT(status_sentence(), "holds no optimiser state");
    end();
}

static bool there(int64_t step)
{
    return files_exists(path_of(step, ""));
}

static void check_prune(void)
{
    begin();
    for (int64_t step = 7; step <= 11; step++)
        CHECK(save(step, SPLIT_WHOLE) == STATUS_OK);
    char *part = text_format("%s/checkpoint-3.part", run), *trash = text_format("%s/checkpoint-4.trash", run);
    char *other = text_format("%s/checkpoint-best", run);
    if (comm.rank == 0) {
        CHECK(files_make_folder(part) == STATUS_OK && files_make_folder(trash) == STATUS_OK);
        CHECK(files_make_folder(other) == STATUS_OK);
    }
    flip(path_of(11, "manifest.json"), 50); /* the newest does not count, and is not thrown away either */
    CHECK(checkpoint_prune(&comm, run, 2) == STATUS_OK);
    CHECK(there(11) && there(10) && there(9) && !there(8) && !there(7));
    CHECK(!files_exists(part) && !files_exists(trash) && files_exists(other));
    CHECK(load(path_of(9, ""), 9, SPLIT_COMB) == 0 && load(path_of(10, ""), 10, SPLIT_COMB) == 0);
    CHECK(checkpoint_prune(&comm, run, 1) == STATUS_OK && there(10) && !there(9));
    comm_barrier(&comm);
    flip(path_of(10, "manifest.json"), 50);
    CHECK(checkpoint_prune(&comm, run, 1) == STATUS_OK && there(10) &&
          there(11)); /* none complete: none goes */
    CHECK(checkpoint_prune(&comm, run, 0) == STATUS_BAD);
    free(part);
    free(trash);
    free(other);
    end();
}

/* For faults/test_storage.py, which kills and starves this program: `save RUN STEP`, or `load RUN`, which
 * prints the step that it found and checks its content. */
static int serve(int argc, char **argv)
{
    snprintf(run, sizeof run, "%s", argv[2]);
    enum status status = STATUS_USAGE;
    if (argc == 4 && !strcmp(argv[1], "save")) {
        status = save(strtoll(argv[3], NULL, 10), SPLIT_BUCKETS);
    } else if (!strcmp(argv[1], "load")) {
        char *found;
        status = checkpoint_find(&comm, run, "auto", &found);
        int64_t step = status == STATUS_OK && found ? strtoll(strrchr(found, '-') + 1, NULL, 10) : -1;
        if (step >= 0 && load(found, step, SPLIT_COMB) != 0) status = fail("%s: wrong values", found);
        printf("step %lld\n", (long long)step);
        free(found);
    }
    if (status != STATUS_OK) fprintf(stderr, "%s\n", status_sentence());
    comm_close(&comm);
    return (int)status;
}

int main(int argc, char **argv)
{
    CHECK(comm_open(&comm) == STATUS_OK);
    if (argc > 2) return serve(argc, argv);
    check_round_trip();
    check_damage();
    check_failed_saves();
    check_models();
    check_prune();
    int result = comm_any(&comm, check_result() != 0);
    comm_close(&comm);
    return result;
}
