#include "launcher/run_folder.h"

#include "runtime/files.h"
#include "runtime/pretrained.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* -- inputs ----------------------------------------------------------------------------------- */

static enum status check_model(const char *key, const char *folder)
{
    if (!folder) return STATUS_OK;
    char *config = files_join(folder, "config.json");
    bool found = files_exists(config);
    free(config);
    if (found) return STATUS_OK;
    if (!files_is_folder(folder)) {
        return fail("%s: %s is no folder; wpo reads local Hugging Face folders and downloads nothing", key,
                    folder);
    }
    return fail("%s: %s holds no config.json; a Hugging Face model folder is expected", key, folder);
}

static enum status check_file(const char *key, const char *path)
{
    if (!path || access(path, R_OK) == 0) return STATUS_OK;
    return fail("%s: %s cannot be read: %s", key, path, strerror(errno));
}

static enum status check_inputs(const struct settings *settings)
{
    TRY(check_model("model_name_or_path", settings->model_name_or_path));
    TRY(check_model("ref_model_name_or_path", settings->ref_model_name_or_path));
    TRY(check_file("train_file", settings->train_file));
    return check_file("eval_file", settings->eval_file);
}

/* -- the folder ------------------------------------------------------------------------------- */

static enum status make_with_parents(const char *path)
{
    char *part = text_copy(path);
    for (char *slash = part + 1; *slash; slash++) {
        if (*slash != '/') continue;
        *slash = 0;
        mkdir(part, 0777); /* if it cannot be made, the last one below cannot either, and says why */
        *slash = '/';
    }
    free(part);
    if (mkdir(path, 0777) == 0 || errno == EEXIST) return STATUS_OK;
    return fail("output_dir: %s cannot be made: %s", path, strerror(errno));
}

static char *existing(const char *folder, const char *name)
{
    char *path = files_join(folder, name);
    if (files_exists(path)) return path;
    free(path);
    return NULL;
}

static bool holds(const char *folder, const char *name)
{
    char *path = existing(folder, name);
    free(path);
    return path != NULL;
}

static bool is_checkpoint(const char *name)
{
    static const char prefix[] = "checkpoint-";
    if (strncmp(name, prefix, sizeof prefix - 1)) return false;
    const char *digits = name + sizeof prefix - 1;
    size_t count = strspn(digits, "0123456789");
    return count > 0 && (!digits[count] || !strcmp(digits + count, ".part"));
}

/* Whether a path of the settings leads into the folder, so that removing the old run would remove an input.
 */
static bool leads_into(const char *path, const char *folder)
{
    char *real = path ? realpath(path, NULL) : NULL, *real_folder = realpath(folder, NULL);
    size_t length = real_folder ? strlen(real_folder) : 0;
    bool inside =
        real && real_folder && !strncmp(real, real_folder, length) && (!real[length] || real[length] == '/');
    free(real);
    free(real_folder);
    return inside;
}

/* Removes what a run writes, and nothing else. */
static enum status remove_run(const struct settings *settings)
{
    const char *folder = settings->output_dir;
    const char *inputs[] = {settings->model_name_or_path, settings->ref_model_name_or_path,
                            settings->train_file, settings->eval_file};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++) {
        if (leads_into(inputs[i], folder)) {
            return fail(
                "output_dir: %s is not overwritten, because %s stands in it; choose another output_dir",
                folder, inputs[i]);
        }
    }
    static const char *const files[] = {"run.yaml",
                                        "log.txt",
                                        "metrics.jsonl",
                                        "pairs.jsonl",
                                        "model",
                                        "reference.h5",
                                        "reference-eval.h5",
                                        "reference-mismatched.h5",
                                        "reference-eval-mismatched.h5"};
    char **names;
    int64_t count;
    TRY(files_list(&names, &count, folder));
    enum status status = STATUS_OK;
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        bool ours = is_checkpoint(names[i]);
        for (size_t f = 0; f < sizeof files / sizeof files[0]; f++)
            ours = ours || !strcmp(names[i], files[f]);
        if (!ours) continue;
        char *path = files_join(folder, names[i]);
        status = files_remove_tree(path);
        free(path);
    }
    files_names_free(names, count);
    return status;
}

/* Whether a run got as far as a record or a checkpoint: an attempt that ended before may simply be made
 * again. */
static bool got_anywhere(const char *folder, char *const *names, int64_t count)
{
    char *metrics = files_join(folder, "metrics.jsonl");
    struct stat information;
    bool far = stat(metrics, &information) == 0 && information.st_size > 0;
    free(metrics);
    for (int64_t i = 0; i < count; i++)
        far = far || is_checkpoint(names[i]);
    return far;
}

static enum status check_content(const struct runfile *runfile)
{
    const struct settings *settings = &runfile->settings;
    const char *folder = settings->output_dir;
    char **names;
    int64_t count;
    TRY(files_list(&names, &count, folder));
    bool run = holds(folder, "run.yaml"), far = got_anywhere(folder, names, count);
    files_names_free(names, count);
    if (count == 0 || settings->resume_from_checkpoint) return STATUS_OK;
    if (run && (runfile->overwrite_output_dir || !far)) return remove_run(settings);
    if (runfile->overwrite_output_dir) {
        return fail(
            "output_dir: %s is not empty and holds no run (no run.yaml), so it is not overwritten; choose "
            "another output_dir",
            folder);
    }
    if (!run) return fail("output_dir: %s is not empty; choose another output_dir, or empty it", folder);
    return fail("output_dir: %s holds a run already; give --resume_from_checkpoint auto to go on with it, "
                "--overwrite_output_dir true to remove it, or another output_dir",
                folder);
}

enum status run_folder_make(const struct runfile *runfile, char **before)
{
    const struct settings *settings = &runfile->settings;
    *before = NULL;
    TRY(check_inputs(settings));
    TRY(make_with_parents(settings->output_dir));
    if (!files_is_folder(settings->output_dir)) {
        return fail("output_dir: %s is a file; choose another output_dir", settings->output_dir);
    }
    TRY(check_content(runfile));
    TRY(files_probe(settings->output_dir));
    char *path = settings->resume_from_checkpoint ? existing(settings->output_dir, "run.yaml") : NULL;
    if (!path) return STATUS_OK;
    size_t bytes;
    enum status status = files_read(before, &bytes, path, 1 << 20);
    free(path);
    return status;
}

/* -- what goes into it ------------------------------------------------------------------------ */

static void note_difference(void *context, const char *sentence)
{
    char *text = text_format("changed since the run began: %s", sentence);
    progress_note(context, text);
    free(text);
}

static enum status copy_model(const char *from, const char *to)
{
    TRY(files_remove_tree(to));
    TRY(files_make_folder(to));
    return pretrained_copy_texts(from, to, true);
}

enum status run_folder_write(const struct runfile *runfile, const char *before, struct progress_log *log)
{
    const struct settings *settings = &runfile->settings;
    if (before && runfile_differences(before, runfile->text, note_difference, log) != STATUS_OK) {
        char *warning = text_format("warning: the run.yaml found is not compared: %s", status_sentence());
        progress_note(log, warning);
        free(warning);
    }
    char *path = files_join(settings->output_dir, "run.yaml"),
         *model = files_join(settings->output_dir, "model");
    enum status status = files_replace(path, runfile->text, strlen(runfile->text));
    /* A resumed run keeps the texts it began with: whether it may go on is only known later. */
    if (status == STATUS_OK && !(before && files_is_folder(model)))
        status = copy_model(settings->model_name_or_path, model);
    free(path);
    free(model);
    return status;
}
